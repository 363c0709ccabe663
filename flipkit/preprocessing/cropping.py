"""Pictures cut to a model's size: at random in training, by a rule in use."""

import math

import numpy as np
from PIL import Image, ImageOps

from flipkit.checks import sides
from flipkit.errors import UnknownName, nearest


def resampling(name):
    """Pillow's filter of that name."""
    known = {option.name.lower(): option for option in Image.Resampling}
    if name not in known:
        raise UnknownName(f"No interpolation is called {name!r}. {nearest(str(name), known)}")
    return known[name]


def resize(image, size, interpolation="bicubic", box=None) -> np.ndarray:
    """uint8 (height, width, 3) -> the same at another size, antialiased.

    Args:
        image: the picture.
        size: pixels of each side of the result, or its (height, width).
        interpolation: one of Pillow's: `"bicubic"`, `"bilinear"`, `"lanczos"`, ...
        box: left, top, right and bottom of the part to take, in pixels; None is the whole.
    """
    height, width = sides(size)
    return np.array(Image.fromarray(image).resize((width, height), resampling(interpolation), box))


def centre_crop(image, size, interpolation="bicubic") -> np.ndarray:
    """The largest part in the middle that has the shape of `size`, at `size`.

    As if the whole were resized first and then cut between pixels, but a picture of one line costs
    no more than others.
    """
    height, width = image.shape[:2]
    h, w = sides(size)
    scale = min(height / h, width / w)
    top, left = round((height / scale - h) / 2) * scale, round((width / scale - w) / 2) * scale
    box = (left, top, min(left + w * scale, width), min(top + h * scale, height))
    return resize(image, size, interpolation, box)


def random_resized_crop(
    image, size, rng, area=(0.5, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bicubic"
) -> np.ndarray:
    """A random part of the picture, at `size`, as torchvision and FLIP cut it.

    Args:
        image: uint8 (height, width, 3).
        size: pixels of each side of the result, or its (height, width).
        rng: a `numpy.random.Generator`.
        area: share of the picture, from and to.
        ratio: width over height, from and to, drawn evenly in its logarithm.
        interpolation: `"bicubic"`, `"bilinear"`, ...: any of Pillow's.
    """
    left, top, width, height = random_box(image.shape[1], image.shape[0], rng, area, ratio)
    return resize(image[top : top + height, left : left + width], size, interpolation)


def random_box(width: int, height: int, rng, area, ratio) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop; after ten misfits, of one from the middle."""
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


# Other projects' rules -------------------------------------------------------------------------

_MOST = 2**22  # pixels of a whole resized picture, beyond which only its middle is made


def as_open_clip(image: Image.Image, size, interpolation, resize_mode) -> np.ndarray:
    """A Pillow image -> uint8 (height, width, 3), as open_clip's transform of an evaluation has it.

    It resizes in the file's own colours (of a palette the nearest pixel), then converts to RGB, where
    transparent pixels keep the colour that they hide. It does not apply the EXIF orientation.
    """
    height, width = sides(size)
    whole = height, width
    if resize_mode == "shortest":
        whole = _by_shorter_side(image, height)
        if height != width:  # another function there, which ignores the interpolation
            ratio = min(image.height / height, image.width / width)
            whole = round(image.height / ratio), round(image.width / ratio)
            interpolation = "bicubic"
    top, left = round((whole[0] - height) / 2), round((whole[1] - width) / 2)
    part, method = (left, top, left + width, top + height), resampling(interpolation)
    if whole[0] * whole[1] <= _MOST:  # Pillow's order of rows and columns depends on the whole
        cut = image.resize((whole[1], whole[0]), method).crop(part)
    else:
        cut = image.resize((width, height), method, _before(image, whole, part))
    return np.array(cut.convert("RGB"))


def as_transformers(image: Image.Image, size, interpolation, resize_mode) -> np.ndarray:
    """A Pillow image -> uint8 (height, width, 3), as the processors of CLIP and SigLIP make it of a file.

    It turns the picture by its EXIF orientation and converts it to RGB, where the transparent colour of
    a palette becomes white and other transparency keeps the colour that it hides. Then it resizes, rows
    first as torchvision does, and cuts.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    if image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    height, width = sides(size)
    whole = height, width
    if resize_mode == "shortest":
        whole = _by_shorter_side(image, height)
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    box = _before(image, whole, (left, top, left + width, top + height))
    method = resampling(interpolation)
    rows = image.resize((width, image.height), method, (box[0], 0, box[2], image.height))
    return np.array(rows.resize((width, height), method, (0, box[1], width, box[3])))


def _by_shorter_side(image, side):
    """Height and width with a shorter side of `side`; the longer one loses its fraction."""
    if image.width <= image.height:
        return int(side * image.height / image.width), side
    return side, int(side * image.width / image.height)


def _before(image, whole, part):
    """Where in `image` the `part` (left, top, right, bottom) lies that it has at the size `whole`."""
    across, down = image.width / whole[1], image.height / whole[0]
    left, top, right, bottom = part
    box = left * across, top * down, right * across, bottom * down
    return *box[:2], min(box[2], image.width), min(box[3], image.height)


# Of a rule that is not flipkit's own, the function: Pillow image -> pixels.
RULES = {"flipkit": None, "open_clip": as_open_clip, "transformers": as_transformers}
