"""Pictures from files: the pixels, and so the embeddings, of open_clip and transformers."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
from PIL import Image

import flipkit

PYTHON = pathlib.Path(__file__).parents[2] / ".venv-peer" / "bin" / "python"
SIDE = 32  # pixels

pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is made by `make test-peers`"),
]


# Sizes that leave fractions, modes, turned by EXIF
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


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder of the files, and the peers' pixels of them."""
    folder = tmp_path_factory.mktemp("pictures")
    out = folder.parent / "pixels.npz"
    task = {"files": write(folder), "side": SIDE, "out": str(out)}
    done = subprocess.run(
        [PYTHON, pathlib.Path(__file__).with_name("pixels.py")],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=600,
    )
    assert not done.returncode, done.stderr[-3_000:]
    return folder, np.load(out)


def test_pixels_are_the_peers_to_one_in_255(theirs):
    folder, pixels = theirs
    largest = {}
    for key, expected in pixels.items():
        peer, mode, interpolation, name = key.split("|")
        rule = "open_clip" if peer == "open_clip" else "transformers"
        prepare = flipkit.Preprocessing(
            "half", interpolation=interpolation, resize_mode=mode, rule=rule
        ).prepare
        [found] = prepare([folder / name], SIDE)
        # Of black and white pixels torchvision's integers make 2 here and there.
        most = 2.01 if name == "1.png" and peer in ("CLIP", "SigLIP") else 1.01
        apart = np.abs(found - expected).max()
        assert apart <= (0.01 if peer == "open_clip" else most), key
        largest[peer] = max(largest.get(peer, 0), float(apart))
    print(largest)
    assert largest.keys() == {"open_clip", "CLIP", "CLIPPil", "SigLIP"}
