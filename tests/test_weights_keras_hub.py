"""Presets of KerasHub, written by it in a process of its own, and read without it."""

import importlib.util
import json
import shutil

import h5py
import numpy as np
import pytest

import flipkit
from flipkit.errors import ConfigurationError

pytestmark = pytest.mark.slow  # KerasHub and TensorFlow take long to import

WRITE = """
import keras
import numpy as np
from keras_hub import models

keras.utils.set_random_seed(3)
sizes = dict(num_layers=2, intermediate_dim=24)
{make}
rng = np.random.default_rng(0)
for variable in backbone.weights:
    if variable.dtype == "float32":  # or norms and biases would be ones and zeros
        variable.assign(variable + 0.2 * rng.normal(size=variable.shape))
    elif variable.path.endswith("position_ids") and {counted}:  # as presets with weights have it
        variable.assign(np.arange(variable.shape[1])[None])
images = rng.normal(size=(3, 24, 24, 3)).astype("float32")
texts = rng.integers(2, 50, (3, 8)).astype("int32")
found = {{
    "images": images,
    "texts": texts,
    "image": backbone.get_vision_embeddings(images),
    "text": backbone.get_text_embeddings(texts),
    "logits": backbone({{"images": images, "token_ids": texts}})["vision_logits"],
}}
np.savez({out!r}, **{{name: np.asarray(array) for name, array in found.items()}})
backbone.save_to_preset({folder!r}, **{options})
"""
FAMILIES = {
    "clip": """
vision = models.CLIPVisionEncoder(
    patch_size=8, hidden_dim=18, num_heads=3, image_shape=(24, 24, 3), **sizes
)
text = models.CLIPTextEncoder(
    vocabulary_size=50, embedding_dim=16, hidden_dim=16, num_heads=2, max_sequence_length=8, **sizes
)
backbone = models.CLIPBackbone(vision, text, projection_dim=10)
""",
    "siglip": """
vision = models.SigLIPVisionEncoder(
    patch_size=8,
    hidden_dim=12,
    num_heads=3,
    intermediate_activation="gelu_approximate",
    image_shape=(24, 24, 3),
    **sizes,
)
text = models.SigLIPTextEncoder(
    vocabulary_size=50,
    embedding_dim=16,
    hidden_dim=16,
    num_heads=2,
    max_sequence_length=8,
    projection_dim=12,
    **sizes,
)
backbone = models.SigLIPBackbone(vision, text)
""",
}


@pytest.fixture(scope="module")
def presets(fresh, tmp_path_factory):
    """A folder with the presets `clip`, `siglip` and `sharded`, and what KerasHub made of inputs."""
    if importlib.util.find_spec("keras_hub") is None:
        pytest.skip("KerasHub is not installed: pip install 'flipkit[nlp]'")
    folder = tmp_path_factory.mktemp("presets")
    code = "".join(
        WRITE.format(
            make=FAMILIES[family],
            folder=str(folder / name),
            out=str(folder / f"{name}.npz"),
            counted=counted,
            options=options,
        )
        for name, family, counted, options in (
            ("clip", "clip", True, {}),
            ("siglip", "siglip", True, {}),
            ("sharded", "clip", False, {"max_shard_size": 2e-5}),  # GB
        )
    )
    fresh(code, KERAS_BACKEND="jax", KAGGLE_KEY=None)
    return folder


@pytest.fixture
def preset(presets, tmp_path):
    """A copy of the preset `clip`, to be changed."""
    shutil.copytree(presets / "clip", tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("name", ["clip", "siglip", "sharded"])
def test_embeddings_and_logits_are_those_of_keras_hub(presets, name):
    model = flipkit.FLIP.from_preset(presets / name)
    model.preprocessing = flipkit.Preprocessing([0, 0, 0], [1 / 255] * 3)  # pixels are normalised
    told = np.load(presets / f"{name}.npz")
    # Not `predict`, which refuses pixels that are normalised.
    batch = {"image": told["images"], "text": told["texts"]}
    found = {tower: np.asarray(vectors) for tower, vectors in model(batch).items()}
    for tower in ("image", "text"):
        expected = told[tower] / np.linalg.norm(told[tower], axis=1, keepdims=True)
        np.testing.assert_allclose(found[tower], expected, atol=1e-5, rtol=0)
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias)
    logits = float(model.scale) * found["image"] @ found["text"].T + bias
    np.testing.assert_allclose(logits, told["logits"], rtol=0, atol=1e-5 * float(model.scale))


def test_weights_are_in_several_files_where_keras_hub_cuts_them(presets):
    assert len(list((presets / "sharded").glob("*.weights.h5"))) > 1


def test_the_library_itself_is_not_imported(presets, fresh):
    code = "import sys, flipkit; flipkit.load_pretrained({!r}); print({!r} in sys.modules)"
    assert fresh(code.format(str(presets / "clip"), "keras_hub")).strip() == "False"


def test_other_arrays_are_refused_listing_them(preset):
    encoder = "layers/clip_text_encoder/layers"
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        del file[f"{encoder}/layer_normalization/vars/1"]
        del file[f"{encoder}/clip_encoder_layer_1/dense_1/vars/1"]
        file[f"{encoder}/clip_encoder_layer_1/dense_1/vars/1"] = np.zeros(23, "float32")
        file[f"{encoder}/clip_encoder_layer_2/dense_1/vars/1"] = np.zeros(24, "float32")
    with pytest.raises(ConfigurationError) as problem:
        flipkit.load_pretrained(preset)
    told = str(problem.value)
    assert f"missing: {encoder}/layer_normalization/vars/1" in told
    assert f"unexpected: {encoder}/clip_encoder_layer_2/dense_1/vars/1" in told
    assert f"reshaped: {encoder}/clip_encoder_layer_1/dense_1/vars/1" in told


def test_settings_without_a_word_here_are_refused(preset):
    told = json.loads((preset / "config.json").read_text())
    told["config"]["text_encoder"]["config"]["intermediate_output_index"] = 1
    told["config"]["text_encoder"]["config"]["rotary"] = True
    (preset / "config.json").write_text(json.dumps(told))
    with pytest.raises(ConfigurationError, match=r"intermediate_output_index=1(.|\n)*rotary=True"):
        flipkit.load_pretrained(preset)


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_truncated_weights_are_one_clear_error(preset, share):
    file = preset / "model.weights.h5"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ConfigurationError, match="missing, cut short or damaged"):
        flipkit.load_pretrained(preset)


@pytest.mark.parametrize(
    ("key", "value"), [("vocabulary_size", 2**30), ("hidden_dim", 2**20), ("num_layers", 2**30)]
)
def test_config_that_asks_for_more_than_the_file_holds_allocates_nothing(preset, key, value):
    told = json.loads((preset / "config.json").read_text())
    encoder = told["config"]["text_encoder"]["config"]
    encoder[key] = value
    encoder["embedding_dim"] = encoder["hidden_dim"]
    (preset / "config.json").write_text(json.dumps(told))
    with pytest.raises(ConfigurationError, match=r"more than the|expected an integer from 1"):
        flipkit.load_pretrained(preset)
