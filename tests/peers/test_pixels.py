"""Pictures from files: the pixels, and so the embeddings, of open_clip and transformers."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pictures
import pytest

import flipkit

PYTHON = pathlib.Path(__file__).parents[2] / ".venv-peer" / "bin" / "python"
SIDE = 32  # pixels

pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is made by `make test-peers`"),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder of the files, and the peers' pixels of them."""
    folder = tmp_path_factory.mktemp("pictures")
    out = folder.parent / "pixels.npz"
    task = {"files": pictures.write(folder), "side": SIDE, "out": str(out)}
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
