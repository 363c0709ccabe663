"""Pictures as files come, for flipkit and its peers: sizes that leave fractions, modes, turned by EXIF."""

import pathlib

import numpy as np
from PIL import Image

SIDE = 32  # pixels that the models below take

SIZES = {  # width, height
    "landscape": (80, 60),
    "portrait": (61, 97),
    "square": (64, 64),
    "exact": (32, 32),
    "odd": (333, 251),
    "tiny": (7, 5),
    "narrow": (3, 40),
    "line": (1, 200),
    "half": (65, 32),
}
MODES = ("P", "CMYK", "L", "LA", "RGBA", "I;16", "1")
TURNS = (3, 6, 8)  # of EXIF's orientation


def noise(width, height, channels, seed=0):
    """Blobs and edges: what a filter at the wrong place gets wrong."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, channels), "uint8")
    picture = coarse.repeat(6, 0).repeat(6, 1)[:height, :width].astype("int32")
    return (picture + rng.integers(-40, 41, picture.shape)).clip(0, 255).astype("uint8")


def write(folder: pathlib.Path) -> list[str]:
    """Writes the pictures; returns their paths."""
    made = {}
    for name, (width, height) in SIZES.items():
        made[f"{name}.png"] = Image.fromarray(noise(width, height, 3)), {}
    rgb = Image.fromarray(noise(83, 61, 3))
    for mode in MODES:
        image = rgb
        if mode in ("LA", "RGBA"):
            image = Image.fromarray(noise(83, 61, len(mode)))
        elif mode == "I;16":
            # Not above 8 bits, where each Pillow cuts off in a way of its own.
            image = Image.fromarray(np.asarray(rgb.convert("L")).astype("uint16") * 200)
        elif mode == "P":
            image = rgb.quantize(64)
        else:
            image = rgb.convert(mode)
        made[f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"] = image, {}
    made["cmyk.jpg"] = rgb.convert("CMYK"), {"quality": 90}
    made["colours.jpg"] = Image.fromarray(noise(333, 250, 3)), {"quality": 85}
    made["clear.gif"] = rgb.quantize(32), {"transparency": 3}
    for turn in TURNS:
        exif = Image.Exif()
        exif[0x0112] = turn
        made[f"turned_{turn}.jpg"] = rgb, {"exif": exif, "quality": 95}
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [str(folder / name) for name in made]
