"""Pictures on their way to the model: decoded, cropped, augmented and normalised.

On the host a picture is a uint8 array (height, width, 3), on the device a batch of such, or of
their patches; random numbers come from a `numpy.random.Generator` that the caller has keyed.
"""

import contextlib
import functools
import io
import math
import os
import pathlib

import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError, features

from flipkit import registry
from flipkit.errors import BadSample, ConfigurationError, UnknownName, nearest
from flipkit.resizing import RULES, centre_crop, resampling, resize
from flipkit.sizes import sides

# What is tried on bytes. Not all that Pillow knows: its EPS reader would start Ghostscript. Its
# JPEG reader also takes MPO, several JPEGs in one file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns: 256 MiB as RGB

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

LUMA = np.array([0.299, 0.587, 0.114], "float32")  # ITU-R BT.601, as in JPEG and Pillow


def get(identifier) -> "Preprocessing":
    """A Preprocessing, its config, or the name of its statistics: `"clip"`; None is FLIP's."""
    if identifier is None or isinstance(identifier, str):
        return Preprocessing(identifier or "imagenet")
    return registry.get("preprocessing", identifier, Preprocessing)


def decode(data, min_size: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture in a file's bytes -> uint8 (height, width, 3).

    What is transparent becomes white, grey becomes three equal channels, of 16 bits the upper 8
    count, of an animation the first frame. The EXIF orientation is not applied: neither do FLIP,
    open_clip and TensorFlow.

    Args:
        data: a file's bytes, a Pillow image, or a picture as uint8 (height, width) or
            (height, width, channels) with 1, 3 or 4 channels.
        min_size: a JPEG may be decoded to a half of its size, a quarter or so, as long as its
            shorter side keeps this many pixels, which is faster. None decodes every pixel.
        max_pixels: a file that claims to hold more is refused before it is decoded.

    Raises:
        BadSample: there is no picture in it, or not all of one.
    """
    with _reasons():
        if isinstance(data, np.ndarray):
            return _rgb_array(data)
        if not isinstance(data, Image.Image) and bytes(data[:2]) == b"\xff\xd8":
            image = _decode_jpeg(data, min_size or 0, max_pixels)
            if image is not None:
                return image
        return _through_pillow(data, _rgb, max_pixels)


def _through_pillow(data, make, max_pixels=MAX_PIXELS):
    """What `make` makes of a picture, a Pillow image that is read when it is used."""
    with _reasons():
        if isinstance(data, np.ndarray):
            return make(_pillow(data))
        if isinstance(data, Image.Image):
            return make(data)
        if not len(data):
            raise BadSample("Can't decode the image: no bytes")
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_pixels(*image.size, max_pixels)
            return make(image)


@contextlib.contextmanager
def _reasons():
    """Whatever goes wrong within is a BadSample that says why."""
    try:
        yield
    except BadSample:
        raise
    except UnidentifiedImageError as error:
        lacking = [name for name in FORMATS if name not in _formats()]
        also = f" (this Pillow was built without {', '.join(lacking)})" if lacking else ""
        formats = ", ".join(_formats())
        raise BadSample(f"Can't decode the image: none of {formats}{also}") from error
    except Exception as error:  # Pillow's readers raise nearly every kind there is
        raise BadSample(f"Can't decode the image: {type(error).__name__}: {error}") from error


@functools.cache
def _formats():
    """Those of `FORMATS` that this Pillow reads: asked for another one, it would raise a KeyError."""
    Image.init()
    built = {
        name: features.check(name.lower()) for name in FORMATS if name.lower() in features.modules
    }
    return tuple(name for name in FORMATS if name in Image.OPEN and built.get(name, True))


def _decode_jpeg(data, min_size, max_pixels):
    """A JPEG in RGB; None leaves it to Pillow: CMYK, or damaged somewhere, perhaps harmlessly."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(width, height, max_pixels)
        if colours in ("CMYK", "YCCK"):
            return None
        # Measured: 5/8 and 3/4 of the size take longer to decode than all of it.
        scale = {"min_height": min_size, "min_width": min_size, "min_factor": 2}
        return simplejpeg.decode_jpeg(data, "RGB", **scale)
    except BadSample:
        raise
    except ValueError:
        return None


def _check_pixels(width, height, max_pixels):
    if width * height > max_pixels:
        raise BadSample(
            f"Can't decode the image: {width} x {height} is more than {max_pixels} pixels"
        )


def _rgb_array(array):
    """A uint8 array, grey or with 1, 3 or 4 channels -> (height, width, 3)."""
    image = _pillow(array)
    return array if image.mode == "RGB" else _rgb(image)


def _pillow(array):
    """A uint8 array, grey or with 1, 3 or 4 channels, as a Pillow image."""
    channels = array.shape[2:]
    shaped = array.ndim >= 2 and array.size and channels in ((), (1,), (3,), (4,))
    if array.dtype != np.uint8 or not shaped:
        raise BadSample(
            "Expected an image as uint8 (height, width, channels). "
            f"Received: {array.dtype} {array.shape}"
        )
    return Image.fromarray(array[..., 0] if channels == (1,) else array)


def _rgb(image):
    """A Pillow image of any mode -> uint8 (height, width, 3)."""
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip to 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype("uint8"))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def random_resized_crop(
    image, size, rng, area=(0.5, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bicubic"
) -> np.ndarray:
    """A random part of the picture, at `size`, as torchvision and FLIP cut it.

    Args:
        image: uint8 (height, width, 3).
        size: pixels of each side of what comes back, or its (height, width).
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


@registry.register
class Preprocessing(registry.Configurable):
    """How a model wants its pictures: cut to a square by the host, normalised on the device.

    The defaults are FLIP's, except that FLIP resizes without antialiasing.

    Args:
        mean: mean of red, green and blue in [0, 1], or the name of known statistics:
            `"imagenet"`, `"clip"` or `"half"`.
        std: their standard deviation or its name; None is that of the mean's name.
        interpolation: how pictures are resized: `"bicubic"`, `"bilinear"`, ...
        resize_mode: `"shortest"` resizes the shorter side and cuts the other from the middle, as FLIP and
            CLIP do; `"squash"` resizes both, whatever the picture's shape, as SigLIP does. Training has
            crops of its own (`flipkit.Feed`).
        rule: whose rounding and colours: `"flipkit"`, or for a model from elsewhere `"open_clip"` or
            `"transformers"`, whose pixels are theirs to 1/255: see `flipkit.resizing`.
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
        """Pictures of any sizes -> uint8 (n, height, width, 3), as `resize_mode` and `rule` say.

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
        return _through_pillow(image, functools.partial(RULES[self.rule], size=size, **how))

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


# Augmentations: (image, rng, how much) -> an image of the same shape. FLIP uses none beside its
# crop and flip; small data wants more.


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
    # Pillow asks where a pixel of the result comes from: the inverse, about the centre.
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
    return np.array(_warped(Image.fromarray(image), inverse))


def _warped(image, inverse):
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

    FLIP uses none beside its crop; small data wants more. In this order:

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
        """`image` changed; what is off draws no random number."""
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


def _enhanced(aspect):
    def operation(image, level):
        return aspect(image).enhance(1 + 0.9 * level)

    return operation


def _moved(matrix):
    """`matrix` makes Pillow's six numbers about the centre of a level; it is moved to the corner."""

    def operation(image, level):
        a, b, c, d, e, f = matrix(level)
        x, y = image.width / 2, image.height / 2
        shift = (x - a * x - b * y + c * image.width, y - d * x - e * y + f * image.height)
        return _warped(image, (a, b, shift[0], d, e, shift[1]))

    return operation


def _rotation(level):
    angle = math.radians(30 * level)
    return math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0


def _solarize_add(image, level):
    table = [
        min(255, value + int(110 * abs(level))) if value < 128 else value for value in range(256)
    ]
    return image.point(table * 3)


# What RandAugment chooses from, (Pillow image, level in [-1, 1]) -> the same; where there is no way
# back and forth, the sign of the level says nothing. All grow with it, as in timm's "increasing"
# variant, which MAE's fine-tuning takes; the ranges are AutoAugment's (arXiv 1805.09501, Table 6),
# a translation's timm's share of the picture.
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
        chance: of an operation that was drawn to be done.
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
