"""Named characters: letters, signs and symbols of fonts, and their Unicode names, without a network."""

import functools
import pathlib
import random
import unicodedata

import numpy as np

from flipkit.datasets.dataset import Dataset
from flipkit.errors import ConfigurationError, nearest
from flipkit.registry import register

# The DejaVu fonts (a free licence) that matplotlib ships: training never uses the test family.
FACES = {
    "train": [
        f"DejaVuSans{width}{style}"
        for width in ("", "Mono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ],
    "test": ["DejaVuSerif", "DejaVuSerif-Bold"],
}
REFERENCE = "DejaVuSans"  # in which no two characters may look alike
CATEGORIES = "LNPS"  # letters, numbers, punctuation, symbols
HEIGHTS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # of the font, as shares of the picture's height
PLACES = (0.4, 0.6)  # of the space beside the character, the share left of it, or above
SHARES = np.linspace(0, 1, 256)[:, None]  # of ink, at each level of a drawing's 256
DARK, LIGHT = (0, 110), (145, 255)  # channels of ink and ground, one each, in any order


@register
class NamedCharacters(Dataset):
    """Drawings of characters, any colours, several sizes, captioned with their Unicode names.

    `LATIN SMALL LETTER A`, `BLACK CHESS KNIGHT`, `GREEK CAPITAL LETTER OMEGA`: real drawings with real
    names. The split "test" has the same characters in a family of fonts that "train" never shows. A
    sample is a pure function of (split, index), and of the versions of Pillow and matplotlib, whose
    fonts it draws with (`pip install 'flipkit[plot]'`).

    Args:
        split: "train", eight faces of DejaVu Sans and Sans Mono, or "test", two of DejaVu Serif.
        size: pictures; None is 8 of each character and face in "train", one of each in "test".
        characters: how many, evenly chosen from the fonts' characters that are no composition of others
            and look like no other; None takes all, about 1,400.
        image_size: pixels per side.
    """

    def __init__(self, split="train", size=None, characters: int | None = 500, image_size=64):
        if split not in FACES:
            raise ConfigurationError(f"Unknown split: {split!r}. {nearest(split, FACES)}")
        for name, value in (("size", size), ("characters", characters), ("image_size", image_size)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigurationError(
                    f"Expected a whole number of at least 1. Received: {name}={value!r}"
                )
        self.split, self.size = split, size
        self.characters, self.image_size = characters, image_size

    def __len__(self):
        if self.size is not None:
            return self.size
        return len(self._chosen) * len(FACES[self.split]) * (8 if self.split == "train" else 1)

    def classnames(self) -> dict:
        """The characters' names, in the order of the labels."""
        return {"names": [_named(character) for character in self._chosen]}

    @functools.cached_property
    def _chosen(self):
        return _characters(self.characters)

    def __getitem__(self, index):
        copy, label = self._place(index)
        character, faces = self._chosen[label], FACES[self.split]
        face = faces[copy % len(faces)]
        draw = random.Random(f"{self.split}/{int(index)}")
        return {
            "image": _drawn(character, face, self.image_size, draw),
            "texts": [_named(character)],
            "label": label,
            "id": f"named_characters/{self.split}/{face}/U+{ord(character):04X}:{index}",
        }

    def texts(self, index):
        """The name of sample `index`, without drawing it."""
        return [_named(self._chosen[self._place(index)[1]])]

    def _place(self, index):
        """(copy, label) of a sample: neighbours have different characters."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return divmod(int(index), len(self._chosen))

    @classmethod
    def example(cls):
        """A small one, for checks."""
        return cls(size=32, characters=16, image_size=32)


def _named(character):
    return unicodedata.name(character).lower()


def _folder():
    try:
        import matplotlib
    except ImportError as problem:
        raise ConfigurationError(
            "named_characters draws with the fonts that matplotlib ships, which is not installed: "
            "pip install 'flipkit[plot]'"
        ) from problem
    return pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.lru_cache(1024)
def _face(name, size):
    from PIL import ImageFont

    return ImageFont.truetype(str(_folder() / f"{name}.ttf"), size)


@functools.cache
def _characters(count):
    """Characters that every face has, none composed of others or drawn like another; `count` of them."""
    from fontTools.ttLib import TTFont
    from PIL import Image, ImageDraw

    held = []
    for name in {REFERENCE, *FACES["train"], *FACES["test"]}:
        with TTFont(_folder() / f"{name}.ttf", lazy=True) as font:
            held.append(set(font.getBestCmap()))
    codes = set.intersection(*held)
    drawings, found = set(), []
    for character in map(chr, sorted(codes)):
        plain = unicodedata.normalize("NFKD", character) == character
        if not plain or not unicodedata.name(character, ""):
            continue
        if unicodedata.category(character)[0] not in CATEGORIES:
            continue
        canvas = Image.new("L", (80, 80))
        ImageDraw.Draw(canvas).text((15, 15), character, 255, font=_face(REFERENCE, 40))
        if (drawing := canvas.tobytes()) not in drawings:
            drawings.add(drawing)
            found.append(character)
    if count is None:
        return found
    if count > len(found):
        raise ConfigurationError(
            f"The fonts have {len(found):,} such characters. Received: characters={count:,}"
        )
    return [found[place * len(found) // count] for place in range(count)]


@functools.lru_cache(32_768)  # of 2 KiB each
def _stamp(character, face, size):
    """A Pillow image of the character alone: the share of ink at each pixel."""
    from PIL import Image, ImageDraw

    font = _face(face, size)
    left, top, right, bottom = map(round, font.getbbox(character))
    stamp = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(stamp).text((-left, -top), character, 255, font=font)
    return stamp


def _drawn(character, face, side, draw):
    """uint8 (side, side, 3): the character near the middle, dark on light or light on dark."""
    from PIL import Image

    stamp = _stamp(character, face, int(side * draw.choice(HEIGHTS)))
    x, y = (round((side - length) * draw.uniform(*PLACES)) for length in stamp.size)
    mask = Image.new("L", (side, side))
    mask.paste(stamp, (x, y))
    dark, light = ([draw.uniform(*span) for _ in range(3)] for span in (DARK, LIGHT))
    ink, ground = (dark, light) if draw.random() < 0.5 else (light, dark)
    colours = np.array(ground) + SHARES * (np.array(ink) - ground)  # of every level of the mask
    return colours.astype("uint8")[np.asarray(mask)]
