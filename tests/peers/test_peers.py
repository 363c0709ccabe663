"""What flipkit writes, open_clip and transformers load, and embed alike: `make test-peers`."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

import flipkit
from flipkit import recipe
from flipkit.weights import tensors, timm_siglip

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peer" / "bin" / "python"
GOLDEN = ROOT.parent / "shared" / "golden"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is made by `make test-peers`"),
]


def clip_vitb(towers="paper", **overrides):
    """The recipe `clip_vitb` at tiny scale, in float32, every weight drawn anew."""
    run = recipe.load("clip_vitb")(scale="tiny", dtype="float32", towers=towers)
    run = run.with_overrides({f"model.{name}": value for name, value in overrides.items()})
    model = flipkit.FLIP.from_config(run.model.get_config())
    model.build()
    rng = np.random.default_rng(0)
    for path, variable in tensors.weights(model).items():
        if path != "logit_scale":
            variable.assign(np.asarray(variable) + rng.normal(size=variable.shape) * 0.1)
    return model


def siglip_of_timm(name="vit_base_patch16_siglip_224"):
    """One of timm's SigLIP towers in full size, beside a small text tower."""
    model = flipkit.FLIP(
        flipkit.ViT(**timm_siglip.towers()[name]),
        flipkit.TextTransformer(99, 8, dim=32, depth=1, heads=2, pool="last"),
        mask_ratio=0.0,
        dim=768,
        image_head=None,
        text_head="affine",
        max_logit_scale=None,
        init_logit_bias=-10.0,
        preprocessing=flipkit.Preprocessing("half", resize_mode="squash"),
    )
    model.build()
    for path, variable in tensors.weights(model).items():
        if path.endswith("bias") and path != "logit_bias":
            variable.assign(np.random.default_rng(0).normal(size=variable.shape) * 0.1)
    return model


def golden(folder):
    if not GOLDEN.exists():
        return None
    return flipkit.load_pretrained(GOLDEN / folder)


def cases():
    """{name: (model, format, library, image size that both load it with)}."""
    found = {
        "clip_vitb with CLIP's towers, open_clip": (clip_vitb("openai"), "open_clip"),
        "clip_vitb with CLIP's towers, transformers": (clip_vitb("openai"), "CLIPModel"),
        "clip_vitb pooled over patches": (clip_vitb(**{"image.pool": "mean_patches"}), "open_clip"),
    }
    found["timm's SigLIP"] = siglip_of_timm(), "open_clip"
    found["larger"] = (clip_vitb("openai"), "open_clip", 56)
    for name in ("base", "quickgelu_patchdropout", "clipa_like", "customtext_siglip"):
        found[f"open_clip/{name}"] = golden(f"open_clip/{name}"), "open_clip"
    for name in ("quick_gelu_legacy_eos", "gelu_eos98"):
        found[f"hf_clip/{name}"] = golden(f"hf_clip/{name}"), "CLIPModel"
        found[f"hf_clip/{name}, open_clip"] = golden(f"hf_clip/{name}"), "open_clip"
    found["open_clip/base, transformers"] = golden("open_clip/base"), "CLIPModel"
    found["hf_siglip/base"] = golden("hf_siglip/base"), "SiglipModel"
    return {name: case for name, case in found.items() if case[0] is not None}


def inputs(model):
    """Pictures and ids: each text ends with the id that CLIP looks for, then padding."""
    rng = np.random.default_rng(1)
    size, text = model.image.image_size, model.text
    images = rng.integers(0, 256, (4, size, size, 3), "uint8")
    ids = rng.integers(3, text.vocab - 1, (4, text.length))
    ids[np.arange(4), [2, 5, 7, text.length - 1]] = text.vocab - 1 if text.eos is None else text.eos
    return images, ids.astype("int32")


def pixels(model, images):
    """What a peer takes: normalised, (batch, 3, height, width)."""
    mean, std = model.preprocessing.statistics()
    return (((images / 255.0) - mean) / std).astype("float32").transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """{name: (flipkit's embeddings and logits, the peer's)}."""
    folder, tasks, ours = tmp_path_factory.mktemp("peers"), [], {}
    for i, (name, (model, library, *size)) in enumerate(cases().items()):
        place = folder / str(i)
        format = "open_clip" if library == "open_clip" else "huggingface"
        flipkit.save_as(model, format, place, verify=True)
        loaded = flipkit.load_pretrained(place, image_size=size[0] if size else None)
        images, ids = inputs(loaded)
        np.savez(folder / f"{i}_in.npz", pixels=pixels(loaded, images), ids=ids)
        found = {
            key: np.asarray(value) for key, value in loaded({"image": images, "text": ids}).items()
        }
        bias = 0.0 if loaded.logit_bias is None else float(loaded.logit_bias)
        found["logits"] = float(loaded.scale) * found["image"] @ found["text"].T + bias
        ours[name] = found
        tasks.append(
            {
                "library": library,
                "folder": str(place),
                "inputs": str(folder / f"{i}_in.npz"),
                "outputs": str(folder / f"{i}_out.npz"),
                "image_size": size[0] if size else None,
            }
        )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, pathlib.Path(__file__).with_name("embed.py")],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert not done.returncode, done.stderr[-3_000:]
    return {
        name: (ours[name], np.load(task["outputs"])) for name, task in zip(ours, tasks, strict=True)
    }


def test_peers_embed_alike_what_flipkit_wrote(compared):
    assert len(compared) >= 4
    for name, (ours, theirs) in compared.items():
        for key in ("image", "text"):
            np.testing.assert_allclose(ours[key], theirs[key], atol=1e-5, rtol=0, err_msg=name)
        np.testing.assert_allclose(
            ours["logits"], theirs["logits"], atol=2e-4, rtol=0, err_msg=name
        )


def test_the_towers_of_the_recipe_itself_are_refused_by_name(tmp_path):
    """Its image tower averages the class token too, as the official code does."""
    with pytest.raises(flipkit.ConfigurationError, match="leaves the class token out"):
        flipkit.save_as(clip_vitb(), "open_clip", tmp_path / "out")
    with pytest.raises(flipkit.ConfigurationError, match=r"text\.causal=False"):
        flipkit.save_as(clip_vitb(), "huggingface", tmp_path / "out")
