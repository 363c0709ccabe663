"""Random changes to a picture: colours, place, outlines. FLIP uses none; small data needs them."""

import math

import numpy as np
from PIL import Image

from flipkit import registry
from flipkit.errors import ConfigurationError

LUMA = np.array([0.299, 0.587, 0.114], "float32")  # ITU-R BT.601, as in JPEG and Pillow


def grayscale(image, rng, chance=1.0) -> np.ndarray:
    """Without colour, with this chance: three equal channels."""
    if rng.random() >= chance:
        return image
    return np.repeat((image @ LUMA + 0.5).astype("uint8")[..., None], 3, axis=-1)


# Rows: brightness, orange against blue, purple against green (NTSC, 1953).
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], "float32")
_RGB = np.linalg.inv(_YIQ)


def colour_jitter(
    image, rng, *, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
) -> np.ndarray:
    """Colours changed by one random affine map: brighter, then flatter, then paler, then turned.

    As torchvision's ColorJitter, but in this order, clipped once, and with hue as a turn about the
    axis of greys in YIQ, which keeps the brightness of each pixel.

    Args:
        image: uint8 (height, width, 3).
        rng: a `numpy.random.Generator`.
        brightness: the factor is drawn from 1 - this to 1 + this, never below 0.
        contrast: likewise, about the mean brightness.
        saturation: likewise, about the brightness of each pixel.
        hue: greatest turn either way, as a share of the circle.
    """
    strengths = np.array([brightness, contrast, saturation])
    b, c, s = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths)
    angle = 2 * math.pi * rng.uniform(-hue, hue)
    cos, sin = s * math.cos(angle), s * math.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])  # of Y, I and Q
    matrix = b * c * (_RGB @ turn @ _YIQ)
    offset = 0.0
    if c != 1:
        x = image.reshape(-1, 3).astype("float32")
        # The mean brightness, as a product: faster than mean().
        offset = (1 - c) * b * (np.full(len(x), 1 / len(x), "float32") @ x @ LUMA)
    rows = np.column_stack([matrix, np.full(3, offset)])
    return np.array(Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist())))


def affine(image, rng, *, scale=(1.0, 1.0), ratio=1.0, degrees=0.0, shift=0.0) -> np.ndarray:
    """Scaled, stretched, turned and moved in one bilinear resampling, on the colour of its corners.

    Args:
        image: uint8 (height, width, 3).
        rng: a `numpy.random.Generator`.
        scale: least and largest factor, drawn evenly in its logarithm; below 1 zooms out.
        ratio: largest width/height of what was square, at least 1; drawn likewise, either way.
        degrees: greatest turn either way.
        shift: greatest move along each axis, as a share of the picture.
    """
    height, width = image.shape[:2]
    factor = math.exp(rng.uniform(*np.log(scale)))
    stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(ratio))
    angle = math.radians(rng.uniform(-degrees, degrees))
    across, down = rng.uniform(-shift, shift, 2) * (width, height)
    cos, sin = math.cos(angle), math.sin(angle)
    # Pillow needs the inverse, about the centre: where a pixel of the result comes from.
    x, y = width / 2, height / 2
    a, b = cos / (factor * stretch), sin / (factor * stretch)
    d, e = -sin * stretch / factor, cos * stretch / factor
    inverse = (
        a,
        b,
        x - a * (x + across) - b * (y + down),
        d,
        e,
        y - d * (x + across) - e * (y + down),
    )
    return np.array(warped(Image.fromarray(image), inverse))


def warped(image, inverse):
    """A Pillow image resampled through an affine map (Pillow's six numbers), on its corners' colour."""
    pixels = np.asarray(image)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int).sum(0) // 4
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        inverse,
        Image.Resampling.BILINEAR,
        fillcolor=tuple(corners.tolist()),
    )


def sketch(image, rng) -> np.ndarray:
    """Edges darkened and fills faded towards white, both by a random amount: like a drawn outline."""
    planes = np.pad(image.transpose(2, 0, 1), ((0, 0), (1, 1), (1, 1)), mode="edge").astype("int16")
    across = np.abs(planes[:, 1:-1, 2:] - planes[:, 1:-1, :-2]).max(0)
    down = np.abs(planes[:, 2:, 1:-1] - planes[:, :-2, 1:-1]).max(0)
    edge, planes = np.maximum(across, down), planes[:, 1:-1, 1:-1]
    ink = np.clip(edge * np.float32(rng.uniform(1, 4) / 255) - np.float32(0.1), 0, 1)
    fade = np.float32(rng.uniform() * (rng.random() < 0.5))
    drawn = (planes * (1 - fade) + 255 * fade) * (1 - ink)
    return np.ascontiguousarray(drawn.astype("uint8").transpose(1, 2, 0))


@registry.register
class Augment(registry.Configurable):
    """Random changes to a picture, uint8 (height, width, 3) -> the same shape; all off by default.

    FLIP uses none beside its crop; small data needs more. In this order:

    Args:
        scale, ratio, degrees, shift: as in `affine`.
        colour: chance of the four jitters of `colour_jitter` that follow.
        brightness, contrast, saturation: strengths, in [0, 1].
        hue: in shares of the circle, at most 0.5.
        grayscale: chance of losing all colour.
        sketch: chance of `sketch`.
    """

    def __init__(
        self,
        *,
        sketch=0.0,
        colour=1.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        grayscale=0.0,
        scale=(1.0, 1.0),
        ratio=1.0,
        degrees=0.0,
        shift=0.0,
    ):
        self.sketch, self.colour = sketch, colour
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue
        self.grayscale = grayscale
        self.scale, self.ratio, self.degrees, self.shift = tuple(scale), ratio, degrees, shift
        limits = dict.fromkeys(
            ("sketch", "colour", "brightness", "contrast", "saturation", "grayscale", "shift"), 1
        )
        for name, most in {**limits, "hue": 0.5, "degrees": 180}.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ConfigurationError(
                    f"Expected {name} in [0, {most}]. Received: {name}={value}"
                )
        if not 0 < scale[0] <= scale[1]:
            raise ConfigurationError(f"Expected scale as two rising factors. Received: {scale=}")
        if ratio < 1:
            raise ConfigurationError(f"Expected ratio at least 1. Received: {ratio=}")

    def __call__(self, image, rng) -> np.ndarray:
        """`image` changed; a change that is off draws no random number."""
        jitter = {n: getattr(self, n) for n in ("brightness", "contrast", "saturation", "hue")}
        place = {n: getattr(self, n) for n in ("scale", "ratio", "degrees", "shift")}
        if place != {"scale": (1.0, 1.0), "ratio": 1.0, "degrees": 0.0, "shift": 0.0}:
            image = affine(image, rng, **place)
        if any(jitter.values()) and rng.random() < self.colour:
            image = colour_jitter(image, rng, **jitter)
        if self.grayscale:
            image = grayscale(image, rng, self.grayscale)
        if self.sketch and rng.random() < self.sketch:
            image = sketch(image, rng)
        return image
