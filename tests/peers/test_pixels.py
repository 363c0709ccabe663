"""Pictures from files: the pixels, and so the embeddings, of open_clip and transformers."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
from PIL import Image

import flipkit
from flipkit import recipe

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peer" / "bin" / "python"
GOLDEN = ROOT.parent / "shared" / "golden"
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


def write_models(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Writes models as each peer's files; returns {name: (what loads it there, its folder)}."""
    run = recipe.load("clip_vitb")(scale="tiny", dtype="float32", towers="openai")
    model = flipkit.FLIP.from_config(run.model.get_config())
    model.build()
    rng = np.random.default_rng(0)
    for variable in model.image.trainable_variables:  # whatever is zero or one at first
        variable.assign(np.asarray(variable) + 0.1 * rng.normal(size=variable.shape))
    cases = {
        "open_clip": (model, "open_clip", "shortest"),
        "open_clip, squashed": (model, "open_clip", "squash"),
        "transformers, CLIP": (model, "CLIPModel", "shortest"),
    }
    if GOLDEN.exists():
        siglip = flipkit.load_pretrained(GOLDEN / "hf_siglip" / "base")
        cases["transformers, SigLIP"] = siglip, "SiglipModel", "squash"
    found = {}
    for name, (model, library, mode) in cases.items():
        model.preprocessing = flipkit.Preprocessing("half", resize_mode=mode)
        place = str(folder / name)
        kind = "open_clip" if library == "open_clip" else "huggingface"
        flipkit.save_as(model, kind, place)
        found[name] = library, place
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models as the peers' files: {name: (what loads it there, its folder)}."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def theirs(models, tmp_path_factory):
    """The files, and the peers' pixels and embeddings of them."""
    folder = tmp_path_factory.mktemp("pictures")
    files, out = write(folder), str(folder.parent / "pixels.npz")
    task = {"files": files, "side": SIDE, "models": models, "out": out}
    done = subprocess.run(
        [PYTHON, pathlib.Path(__file__).with_name("pixels.py")],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=600,
    )
    assert not done.returncode, done.stderr[-3_000:]
    return [*map(pathlib.Path, files)], np.load(out)


def test_pixels_are_the_peers_to_one_in_255(theirs):
    files, pixels = theirs
    largest, files = {}, {file.name: file for file in files}
    for key in (key for key in pixels if "|" in key):
        expected = pixels[key]
        peer, mode, interpolation, name = key.split("|")
        rule = "open_clip" if peer == "open_clip" else "transformers"
        prepare = flipkit.Preprocessing(
            "half", interpolation=interpolation, resize_mode=mode, rule=rule
        ).prepare
        [found] = prepare([files[name]], SIDE)
        # Of black and white pixels torchvision's integers make 2 here and there.
        most = 2.01 if name == "1.png" and peer in ("CLIP", "SigLIP") else 1.01
        apart = np.abs(found - expected).max()
        assert apart <= (0.01 if peer == "open_clip" else most), key
        largest[peer] = max(largest.get(peer, 0), float(apart))
    print(largest)
    assert largest.keys() == {"open_clip", "CLIP", "CLIPPil", "SigLIP"}


def test_embeddings_of_files_are_the_peers(models, theirs):
    """Each side with its own preprocessing, from the same model's files and the same pictures."""
    files, found = theirs
    largest = {}
    for name, (_, place) in models.items():
        expected = found[name]
        embedded = flipkit.load_pretrained(place).encode_images(files)
        assert np.std(expected, axis=0).max() > 0.01, name  # pictures are told apart
        largest[name] = float(np.abs(np.asarray(embedded) - expected).max())
    print(largest)
    for name, apart in largest.items():
        assert apart <= (1e-5 if name.startswith("open_clip") else 1e-3), largest
