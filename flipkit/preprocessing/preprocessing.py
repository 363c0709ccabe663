"""A model's preprocessing: pictures are cut on the host and normalised on the device."""

import functools
import os
import pathlib

import numpy as np

from flipkit import registry
from flipkit.checks import sides
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.preprocessing.cropping import RULES, centre_crop, resampling, resize
from flipkit.preprocessing.decoding import decode, through_pillow

# name: (mean, standard deviation) of red, green and blue in [0, 1]
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # FLIP, torchvision
    "clip": (  # OpenAI's CLIP, open_clip
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to [-1, 1]: SigLIP, big_vision
}
RESIZE_MODES = ("shortest", "squash")


def get(identifier) -> "Preprocessing":
    """A Preprocessing, its config, or the name of its statistics: `"clip"`; None is FLIP's."""
    if identifier is None or isinstance(identifier, str):
        return Preprocessing(identifier or "imagenet")
    return registry.get("preprocessing", identifier, Preprocessing)


@registry.register
class Preprocessing(registry.Configurable):
    """A model's preprocessing: the host cuts pictures to a square, the device normalises them.

    The defaults are FLIP's, except that FLIP resizes without antialiasing.

    Args:
        mean: mean of red, green and blue in [0, 1], or the name of known statistics:
            `"imagenet"`, `"clip"` or `"half"`.
        std: their standard deviation or its name; None is that of the mean's name.
        interpolation: the filter that resizes pictures: `"bicubic"`, `"bilinear"`, ...
        resize_mode: `"shortest"` resizes the shorter side and cuts the other from the middle, as FLIP and
            CLIP do; `"squash"` resizes both, whatever the picture's shape, as SigLIP does. Training has
            crops of its own (`flipkit.Feed`).
        rule: whose rounding and colours: `"flipkit"`, or for a foreign model `"open_clip"` or
            `"transformers"`, whose pixels are theirs to 1/255: see `flipkit.preprocessing.cropping`.
    """

    def __init__(
        self,
        mean="imagenet",
        std=None,
        *,
        interpolation="bicubic",
        resize_mode="shortest",
        rule="flipkit",
    ):
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.resize_mode = resize_mode
        self.rule = rule
        self.statistics()
        resampling(interpolation)
        if resize_mode not in RESIZE_MODES:
            raise UnknownName(
                f"Unknown resize_mode={resize_mode!r}. {nearest(str(resize_mode), RESIZE_MODES)}"
            )
        if rule not in RULES:
            raise UnknownName(f"Unknown rule={rule!r}. {nearest(str(rule), RULES)}")

    def prepare(self, images, size) -> np.ndarray:
        """Pictures of any sizes -> uint8 (n, height, width, 3), by `resize_mode` and `rule`.

        Args:
            images: paths, or what `decode` takes: files' bytes, uint8 arrays, Pillow images.
            size: pixels of each side, or (height, width).

        Raises:
            BadSample: one of them is no picture.
        """
        rows = np.empty((len(images), *sides(size), 3), "uint8")
        for row, image in zip(rows, images, strict=True):
            if isinstance(image, (str, os.PathLike)):
                image = pathlib.Path(image).read_bytes()
            row[:] = self._fitted(image, size)
        return rows

    def _fitted(self, image, size):
        if self.rule == "flipkit":
            cut = centre_crop if self.resize_mode == "shortest" else resize
            return cut(decode(image), size, self.interpolation)
        how = {"interpolation": self.interpolation, "resize_mode": self.resize_mode}
        return through_pillow(image, functools.partial(RULES[self.rule], size=size, **how))

    def normalise(self, x):
        """uint8 (..., channels), or patches (..., pixels * channels) -> float32 of the same shape.

        `(x / 255 - mean) / std`, as one multiplication and one addition per value.
        """
        from keras import ops  # here, so that the workers of a feed start no backend

        pixels, rest = divmod(x.shape[-1], 3)
        if rest:
            raise ConfigurationError(f"Expected 3 channels per pixel. Received shape: {x.shape}")
        mean, std = self.statistics()
        scale, shift = np.tile([1 / (255 * std), -mean / std], pixels).astype("float32")
        return ops.cast(x, "float32") * scale + shift

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of red, green and blue in [0, 1], each float64 (3,)."""
        std = self.mean if self.std is None and isinstance(self.mean, str) else self.std
        return _statistic(self.mean, "mean"), _statistic(std, "std")


def _statistic(value, name):
    known = value
    if isinstance(value, str):
        if value not in STATISTICS:
            hint = nearest(value, STATISTICS)
            raise UnknownName(f"No pixel statistics are called {value!r}. {hint}")
        known = STATISTICS[value][("mean", "std").index(name)]
    if np.shape(known) != (3,) or (name == "std" and not np.min(known) > 0):
        raise ConfigurationError(
            f"Expected {name} as a name or a number per channel, a std above 0. "
            f"Received: {name}={value!r}"
        )
    return np.asarray(known, "float64")
