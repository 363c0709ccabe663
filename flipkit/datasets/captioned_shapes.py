"""Captioned shapes: small drawn scenes and English for them, without a file or a network."""

import functools
import itertools
import random
import zlib
from typing import NamedTuple

import numpy as np

from flipkit.datasets.dataset import Dataset
from flipkit.errors import ConfigurationError, nearest
from flipkit.registry import register

SPLITS = {"train": 100_000, "test": 2_560, "word_order": 1_000, "attributes": 1_000}  # scenes
COLOURS = {  # RGB
    "red": (218, 32, 40),
    "orange": (246, 138, 16),
    "yellow": (240, 216, 28),
    "green": (32, 158, 62),
    "cyan": (48, 200, 214),
    "blue": (44, 84, 224),
    "purple": (136, 52, 184),
    "pink": (250, 120, 184),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
SIZES = {"small": (16, 19), "large": (26, 31)}  # diameters from, below; pixels of an image 64 wide
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
ANGLES = (-12, -6, 0, 6, 12)  # degrees

# A scene's relation is where its first thing is, seen from its second: "left" or "above". Captions
# use both directions; the first words are those of the class names.
FORWARD = {"left": ("to the left of", "left of"), "above": ("above", "over")}
BACKWARD = {"left": ("to the right of", "right of"), "above": ("below", "under")}
SIDES = {"left": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}

ALONE = (
    "{a}",
    "there is {a}",
    "a picture of {a}",
    "{a} on {ground}",
    "you can see {a}",
    "a drawing with {a} in it",
    "on {ground} there is {a}",
)
TOGETHER = (
    "{a} {relation} {b}",
    "there is {a} {relation} {b}",
    "{a} is {relation} {b}",
    "a picture of {a} {relation} {b}",
    "{relation} {b} there is {a}",
    "you can see {a} {relation} {b}",
    "{a} {relation} {b} on {ground}",
    "{a} {here} and {b} {there}",
)


class Thing(NamedTuple):
    """One shape to draw. If size is None, the image shows either and the text names neither."""

    colour: str
    shape: str
    size: str | None = None


class Scene(NamedTuple):
    """One thing, or two of which the first is left of or above the second."""

    things: tuple[Thing, ...]
    relation: str | None = None  # "left" or "above"
    ground: str | None = None  # "light" or "dark"


@register
class CaptionedShapes(Dataset):
    """Scenes of one or two coloured shapes with three captions each, drawn on access.

    A sample is a pure function of (seed, split, index), equal on every machine. Left and right are
    part of the captions: mirrored images (`Feed(flip=True)`) make them untrue.

    Splits:
        train: any scene but those held out, a quarter of all scenes of two things, chosen by a hash
            of the scene, so that "a red circle left of a blue star" is held out along with "a blue
            star right of a red circle".
        test: new pictures of 512 classes, evenly, with a "label": 128 of one thing (colour, shape
            and size), 288 of two things seen in training and 96 of two things held out.
        word_order: two texts, of which the second is untrue: the things have changed places.
        attributes: the same, but the colours have changed places. In both, the two texts have the
            same words, so that a model blind to their order is right half of the time.

    Args:
        split: one of the above.
        size: number of scenes; None for 100,000 (train), 2,560 (test: 5 of each class) or 1,000.
        image_size: height and width in pixels, from 32.
        seed: draws other scenes; held-out scenes and classes stay the same.
    """

    def __init__(self, split="train", size=None, image_size=64, seed=0):
        if split not in SPLITS:
            raise ConfigurationError(
                f"Expected a split of the captioned shapes. {nearest(split, SPLITS)} "
                f"Received: split={split!r}"
            )
        if size is not None and size < 1:
            raise ConfigurationError(f"Expected size >= 1 scenes. Received: size={size!r}")
        if image_size < 32:
            raise ConfigurationError(
                "Expected image_size >= 32 pixels: in fewer, shapes look alike. "
                f"Received: image_size={image_size!r}"
            )
        self.split = split
        self.size = size
        self.image_size = image_size
        self.seed = seed

    def __len__(self):
        return SPLITS[self.split] if self.size is None else self.size

    def __getitem__(self, i):
        scene, rng = self._draw(i)
        texts = self._texts(scene, rng)
        sample = {
            "image": paint(scene, rng, self.image_size),
            "texts": texts,
            "id": f"captioned_shapes/{self.split}/{self.seed}:{i}",
        }
        if self.split == "test":
            sample["label"] = int(i) % len(classes())
        return sample

    def texts(self, i):
        """The texts of scene `i`, without drawing it."""
        return self._texts(*self._draw(i))

    def scene(self, i) -> Scene:
        """The things in image `i`."""
        return self._draw(i)[0]

    def classnames(self) -> dict:
        """The test split's classes: parallel lists "names" and "split" ("seen" or "held out")."""
        split = ["held out" if held_out(scene) else "seen" for scene in classes()]
        return {"names": [class_name(scene) for scene in classes()], "split": split}

    def _draw(self, i):
        """Scene `i`, and the random generator for its words and its picture."""
        if not 0 <= i < len(self):
            raise IndexError(f"Scene {i} of {len(self)} does not exist.")
        rng = random.Random(f"{self.seed}/{self.split}/{i}")
        if self.split == "test":
            scene = classes()[i % len(classes())]
        elif self.split == "train":
            scene = _some_scene(rng)
            while held_out(scene):
                scene = _some_scene(rng)
        else:
            scene = _some_pair(rng)
            while _share_a_word(*scene.things):
                scene = _some_pair(rng)
        things = tuple(t._replace(size=t.size or pick(rng, SIZES)) for t in scene.things)
        return Scene(things, scene.relation, pick(rng, ("light", "dark"))), rng

    def _texts(self, scene, rng):
        if self.split in ("train", "test"):
            return captions(scene, rng)
        a, b = (thing._replace(size=None) for thing in scene.things)
        if self.split == "word_order":
            foil = b, a
        else:
            foil = a._replace(colour=b.colour), b._replace(colour=a.colour)
        template, backward = pick(rng, TOGETHER), rng.random() < 0.5
        words = pick(rng, (0, 1))
        return [
            say(Scene(things, scene.relation, scene.ground), template, backward, words)
            for things in ((a, b), foil)
        ]


def pick(rng, options):
    """One of `options`. Only the stream of `random()` is the same in every version of Python."""
    options = tuple(options)
    return options[int(rng.random() * len(options))]


def _some_scene(rng):
    """A random scene of training: one thing in three, two things in the rest."""
    if rng.random() < 1 / 3:
        return Scene((Thing(pick(rng, COLOURS), pick(rng, SHAPES)),))
    return _some_pair(rng)


def _some_pair(rng):
    """Two different things in one of the two relations, all equally likely."""
    a, b = (Thing(pick(rng, COLOURS), pick(rng, SHAPES)) for _ in range(2))
    return _some_pair(rng) if a == b else Scene((a, b), pick(rng, FORWARD))


def _share_a_word(a, b):
    """Whether two things share a colour or shape: swapping them could leave a text true."""
    return a.colour == b.colour or a.shape == b.shape


@functools.cache
def _hash(words):
    """A fixed number for words: Python's own hash differs from run to run."""
    return zlib.crc32(words.encode())


def held_out(scene: Scene) -> bool:
    """Whether training never shows this scene, in any sizes."""
    if scene.relation is None:
        return False
    a, b = scene.things
    return _hash(f"{a.colour} {a.shape} {scene.relation} {b.colour} {b.shape}") % 4 == 0


@functools.cache
def classes() -> list[Scene]:
    """The scenes of the test split's classes: 128 of one thing, then 384 of two, 96 held out."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    alone = [Scene((thing._replace(size=size),)) for thing in things for size in SIZES]
    pairs = [
        Scene(pair, relation) for pair in itertools.permutations(things, 2) for relation in FORWARD
    ]
    pairs.sort(key=lambda scene: _hash("class: " + class_name(scene)))
    unseen = [scene for scene in pairs if held_out(scene)]
    seen = [scene for scene in pairs if not held_out(scene)]
    return alone + seen[:288] + unseen[:96]


def class_name(scene: Scene) -> str:
    """The class's name: "a large red circle", "a red circle to the left of a blue star"."""
    backward = scene.relation is not None and _hash(str(scene.things)) % 2 == 1
    return say(scene, "{a} {relation} {b}" if scene.relation else "{a}", backward, 0)


def captions(scene: Scene, rng) -> list[str]:
    """Three different sentences: two things in either order, sizes half of the time."""
    templates = list(TOGETHER if scene.relation else ALONE)
    turn = pick(rng, (0, 1))
    texts = []
    for n in range(3):
        template = templates.pop(int(rng.random() * len(templates)))
        things = tuple(t if rng.random() < 0.5 else t._replace(size=None) for t in scene.things)
        backward = (turn + n) % 2 == 1
        texts.append(say(scene._replace(things=things), template, backward, pick(rng, (0, 1))))
    return texts


def say(scene: Scene, template: str, backward: bool, words: int) -> str:
    """`template` filled in for `scene`: a backward sentence begins with its second thing."""
    nouns = [_noun(thing, words) for thing in scene.things]
    ground = f"a {scene.ground} background"
    if scene.relation is None:
        return template.format(a=nouns[0], ground=ground)
    relation = (BACKWARD if backward else FORWARD)[scene.relation][words]
    order = slice(None, None, -1 if backward else 1)
    (a, b), (here, there) = nouns[order], SIDES[scene.relation][order]
    return template.format(a=a, b=b, relation=relation, here=here, there=there, ground=ground)


def _noun(thing, words):
    size = f"{SIZE_WORDS[thing.size][words]} " if thing.size else ""
    noun = f"{size}{thing.colour} {thing.shape}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def paint(scene: Scene, rng, image_size: int):
    """The picture of a scene: uint8 (image_size, image_size, 3)."""
    image = _background(scene.ground, rng, image_size)
    for thing, (x, y), diameter in _arrange(scene, rng, image_size):
        alpha = stamp(thing.shape, diameter, pick(rng, ANGLES))
        colour = np.array([c + int(rng.random() * 21) - 10 for c in COLOURS[thing.colour]])
        colour = colour.clip(0, 255).astype("uint16")
        part = image[y : y + diameter, x : x + diameter]
        part[...] = (part * (255 - alpha) + colour * alpha + 127) // 255  # at most 65,152: fits
    return image.astype("uint8")


def _background(ground, rng, image_size):
    """Light or dark grey with a hint of a colour, a slope of light and some grain; uint16."""
    level = (200 + 40 * rng.random()) if ground == "light" else (16 + 36 * rng.random())
    tint = [int(level + 16 * rng.random() - 8) for _ in range(3)]
    slope = [int(rng.random() * 33) - 16 for _ in range(2)]  # levels from edge to edge
    ramp = np.arange(image_size) - image_size // 2
    light = (ramp[:, None] * slope[0] + ramp * slope[1]) // (2 * image_size)
    y, x = (int(rng.random() * image_size) for _ in range(2))
    light = light + _grain(image_size)[y : y + image_size, x : x + image_size]
    return (light[..., None] + tint).clip(0, 255).astype("uint16")


@functools.cache
def _grain(image_size):
    """Noise of -4 to 4 levels, twice as wide as an image."""
    side = 2 * image_size
    noise = np.frombuffer(random.Random("grain").randbytes(side * side), "uint8")
    return noise.reshape(side, side).astype("int64") % 9 - 4


def _arrange(scene, rng, image_size):
    """For each thing: itself, the corner (x, y) of its stamp, and its diameter, in pixels."""
    bounds = [SIZES[thing.size] for thing in scene.things]
    diameters = [int((a + (b - a) * rng.random()) * image_size / 64) for a, b in bounds]
    space = image_size - 2  # a pixel is left free at every edge; two large things just fit
    across = [1 + rng.random() * (space - d) for d in diameters]
    if scene.relation is None:
        along = [1 + rng.random() * (space - diameters[0])]
    else:
        slack = space - sum(diameters)
        low, high = sorted(slack * rng.random() for _ in range(2))
        along = [1 + low, 1 + high + diameters[0]]
        # The second one stays nearly level with the first: by a third of their distance.
        a, b = diameters
        distance = along[1] + b / 2 - along[0] - a / 2
        level = across[0] + a / 2 - b / 2 + (2 * rng.random() - 1) * distance / 3
        across[1] = min(max(level, 1), 1 + space - b)
    corners = (
        zip(along, across, strict=True)
        if scene.relation == "left"
        else zip(across, along, strict=True)
    )
    return [
        (thing, (int(x), int(y)), diameter)
        for thing, (x, y), diameter in zip(scene.things, corners, diameters, strict=True)
    ]


@functools.cache
def stamp(shape: str, diameter: int, degrees: int):
    """The share of each pixel that a shape covers, 0 to 255: uint16 (diameter, diameter, 1)."""
    fine = 6  # samples per pixel and direction
    at = (np.arange(diameter * fine) + 0.5) * 2 / (diameter * fine) - 1
    x, y = np.meshgrid(at, -at)  # y points up
    turn = np.deg2rad(degrees)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    inside = _inside(shape, x, y).reshape(diameter, fine, diameter, fine)
    return np.rint(inside.mean((1, 3)) * 255).astype("uint16")[..., None]


def _inside(shape, x, y):
    """Which points of [-1, 1] x [-1, 1] belong to a shape; each fits a circle of radius 1."""
    if shape == "circle":
        return np.hypot(x, y) < 0.95
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.74) < 0.24
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.8
    if shape == "diamond":
        return abs(x) / 0.66 + abs(y) < 1
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.93)
    if shape == "heart":
        u, v = 1.2 * x, 1.2 * y + 0.1
        return (u**2 + v**2 - 1) ** 3 < u**2 * v**3
    # A triangle lies within three lines; a star's points lie beyond one of its five.
    sides, first, beyond = {"triangle": (3, -90, 0), "star": (5, 90, 1)}[shape]
    normals = np.deg2rad(first + 360 / sides * np.arange(sides))[:, None, None]
    outside = x * np.cos(normals) + y * np.sin(normals) > np.cos(
        2 * np.pi / 5 if beyond else np.pi / 3
    )
    return outside.sum(0) <= beyond
