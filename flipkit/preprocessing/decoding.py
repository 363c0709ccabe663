"""Pictures in files' bytes, decoded on the host: uint8 (height, width, 3)."""

import contextlib
import functools
import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from flipkit.errors import BadSample

# The formats to try on bytes. Not all of Pillow's: its EPS reader would start Ghostscript. Its
# JPEG reader also takes MPO, several JPEGs in one file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns: 256 MiB as RGB


def decode(data, min_size: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture in a file's bytes -> uint8 (height, width, 3).

    Transparent pixels become white and grey becomes three equal channels. Of 16 bits it takes the upper
    8, of an animation the first frame. It does not apply the EXIF orientation: neither do FLIP, open_clip
    and TensorFlow.

    Args:
        data: a file's bytes, a Pillow image, or a picture as uint8 (height, width) or
            (height, width, channels) with 1, 3 or 4 channels.
        min_size: a JPEG may be decoded to a half of its size, a quarter or so, as long as its
            shorter side keeps this many pixels, which is faster. None decodes every pixel.
        max_pixels: a file that claims to hold more raises before it is decoded.

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
        return through_pillow(data, _rgb, max_pixels)


def through_pillow(data, make, max_pixels=MAX_PIXELS):
    """`make(image)` of a picture, a Pillow image that is read when it is used."""
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
    """Turns any error raised inside into a BadSample with the cause."""
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
    """Those of `FORMATS` that this Pillow reads; it would raise a KeyError for another one."""
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
