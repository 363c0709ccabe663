"""RandAugment: operations drawn at random, all about as strong."""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from flipkit import registry
from flipkit.errors import ConfigurationError
from flipkit.preprocessing.augment import warped


def _enhanced(aspect):
    def operation(image, level):
        return aspect(image).enhance(1 + 0.9 * level)

    return operation


def _moved(matrix):
    """Moves the centre of `matrix`, which maps a level to Pillow's six numbers, to the corner."""

    def operation(image, level):
        a, b, c, d, e, f = matrix(level)
        x, y = image.width / 2, image.height / 2
        shift = (x - a * x - b * y + c * image.width, y - d * x - e * y + f * image.height)
        return warped(image, (a, b, shift[0], d, e, shift[1]))

    return operation


def _rotation(level):
    angle = math.radians(30 * level)
    return math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0


def _solarize_add(image, level):
    table = [
        min(255, value + int(110 * abs(level))) if value < 128 else value for value in range(256)
    ]
    return image.point(table * 3)


# The operations of RandAugment, (Pillow image, level in [-1, 1]) -> the same; an operation without a
# direction ignores the level's sign. All grow with it, as in timm's "increasing" variant, which MAE's
# fine-tuning takes; the ranges are AutoAugment's (arXiv 1805.09501, Table 6), a translation's timm's
# share of the picture.
OPERATIONS = {
    "auto_contrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "invert": lambda image, level: ImageOps.invert(image),
    "posterize": lambda image, level: ImageOps.posterize(image, max(1, 4 - int(4 * abs(level)))),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - int(256 * abs(level))),
    "solarize_add": _solarize_add,
    "colour": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "rotate": _moved(_rotation),
    "shear_x": _moved(lambda level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _moved(lambda level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _moved(lambda level: (1, 0, 0.45 * level, 0, 1, 0)),
    "translate_y": _moved(lambda level: (1, 0, 0, 0, 1, 0.45 * level)),
}


@registry.register
class RandAugment(registry.Configurable):
    """Operations drawn at random, all about as strong: uint8 (height, width, 3) -> the same shape.

    RandAugment (Cubuk et al., arXiv 1909.13719) as fine-tuning uses it: RandAug(9, 0.5) in FLIP's Table 12
    is magnitude and spread.

    Args:
        magnitude: strength, from 0 to 10.
        spread: standard deviation of each operation's strength.
        count: operations drawn for a picture, any of `OPERATIONS` each time.
        chance: chance that a drawn operation is applied.
    """

    def __init__(self, magnitude=9.0, spread=0.5, *, count=2, chance=0.5):
        self.magnitude, self.spread, self.count, self.chance = magnitude, spread, count, chance
        if not 0 <= magnitude <= 10:
            raise ConfigurationError(f"Expected a magnitude in [0, 10]. Received: {magnitude=}")
        if spread < 0 or count < 0 or not 0 <= chance <= 1:
            raise ConfigurationError(
                "Expected a spread and a count of at least 0 and a chance in [0, 1]. Received: "
                f"{spread=}, {count=}, {chance=}"
            )

    def __call__(self, image, rng) -> np.ndarray:
        """`image` changed; `rng` is a `numpy.random.Generator`."""
        picture, names = Image.fromarray(image), list(OPERATIONS)
        for name in rng.choice(len(names), self.count):
            level = min(max(rng.normal(self.magnitude, self.spread), 0), 10) / 10
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < self.chance:
                picture = OPERATIONS[names[name]](picture, sign * level)
        return np.array(picture)
