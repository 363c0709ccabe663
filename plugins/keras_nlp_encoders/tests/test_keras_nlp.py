"""Towers and tokenizers made of tiny presets, which the tests write themselves."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import tomllib

import keras
import numpy as np
import pytest

import flipkit
from flipkit.testing.check import expect_close

keras_nlp = pytest.importorskip(
    "keras_nlp", reason="needs a keras-nlp that works with this Keras", exc_type=ImportError
)

import flipkit_keras_nlp  # noqa: E402
from flipkit_keras_nlp import presets  # noqa: E402
from flipkit_keras_nlp.encoders import KerasNLPImage, KerasNLPText  # noqa: E402
from flipkit_keras_nlp.tokenizers import KerasNLPTokenizer  # noqa: E402

SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]


@pytest.fixture(scope="module", autouse=True)
def plugin():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLIPKIT_PLUGINS", "")
        flipkit.plugins.reset()
        flipkit.plugins.register(flipkit_keras_nlp, name="flipkit-keras-nlp")
        yield
        flipkit.plugins.reset()


def make(kind):
    """A tiny backbone with weights of its own."""
    models = keras_nlp.models
    image = {"patch_size": 4, "image_shape": (16, 16, 3), **SIZES}
    text = {"vocabulary_size": 60, "max_sequence_length": 8, **SIZES}
    clip = {"intermediate_dim": 32}
    if kind == "vit":
        return models.ViTBackbone(mlp_dim=32, dropout_rate=0.1, **image)
    if kind == "bert":
        return models.BertBackbone(**text, **clip)
    halves = {"clip": ("CLIP", {"projection_dim": 8}), "siglip": ("SigLIP", {})}
    family, more = halves[kind]
    vision = getattr(models, f"{family}VisionEncoder")(**image, **clip)
    words = getattr(models, f"{family}TextEncoder")(embedding_dim=16, **text, **clip)
    return getattr(models, f"{family}Backbone")(vision, words, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: (backbone, its preset)}, made when they are asked for."""
    known = {}

    def get(kind):
        if kind not in known:
            backbone, folder = make(kind), tmp_path_factory.mktemp(kind)
            rng = np.random.default_rng(0)
            for weight in backbone.weights:
                if weight.trainable:
                    weight.assign(rng.normal(0, 0.2, weight.shape))
                elif (
                    weight.name == "position_ids"
                ):  # as presets have them; CLIP's constructor hasn't
                    weight.assign(np.arange(weight.shape[1])[None])
            backbone.save_to_preset(str(folder))
            known[kind] = backbone, folder
        return known[kind]

    return get


@pytest.fixture
def pixels():
    return np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype("float32")


@pytest.fixture
def ids():
    rows = np.random.default_rng(2).integers(1, 60, (3, 8)).astype("int32")
    rows[0, 5:] = 0
    return rows


def expected_images(backbone, kind, pixels):
    """What keras-nlp's own model gives, pooled as that family does."""
    if kind == "vit":
        return np.asarray(backbone(pixels))[:, 0]
    out = np.asarray(backbone.vision_encoder({"images": pixels}))
    return out[:, 0] if kind == "clip" else out


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
def test_an_image_tower_gives_the_presets_features(made, pixels, kind):
    backbone, folder = made(kind)
    tower = KerasNLPImage(folder)
    assert (tower.dim, tower.image_size, tower.patch_size, tower.grid) == (16, (16, 16), 4, (4, 4))
    tower.build()
    expected = expected_images(backbone, kind, pixels)
    expect_close(np.asarray(tower(pixels)), expected, "the preset's features")


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
def test_patches_are_embedded_as_the_whole_image_is(made, pixels, kind):
    """All patches give what the image gives; some give what leaving out tokens gives."""
    tower = KerasNLPImage(made(kind)[1])
    tower.build()
    patches = flipkit.layers.patchify(pixels, 4)
    whole = np.asarray(tower(pixels))
    expect_close(np.asarray(tower(patches)), whole, "the whole image's features")
    everything = np.tile(np.arange(16, dtype="int32"), (3, 1))
    expect_close(np.asarray(tower(patches, ids=everything)), whole, "the whole image's features")
    # Transformers know no order: shuffled patches with their ids give the same feature.
    order = np.random.default_rng(3).permutation(16)
    shuffled = np.asarray(patches)[:, order], everything[:, order]
    expect_close(
        np.asarray(tower(shuffled[0], ids=shuffled[1])), whole, "the whole image's features"
    )
    some = np.array([[0, 3, 9], [1, 2, 15], [4, 5, 6]], "int32")
    kept = np.take_along_axis(np.asarray(patches), some[..., None], axis=1)
    found = np.asarray(tower(kept, ids=some))
    expect_close(found, np.asarray(tower(pixels, ids=some)), "the image's features", 1e-6)
    assert np.abs(found - whole).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "clip", "siglip"])
def test_a_text_tower_gives_the_presets_features(made, ids, kind):
    backbone, folder = made(kind)
    tower = KerasNLPText(folder)
    assert (tower.dim, tower.length, tower.vocab) == (16, 8, 60)
    tower.build()
    if kind == "bert":
        inputs = {"token_ids": ids, "segment_ids": np.zeros_like(ids)}
        expected = backbone({**inputs, "padding_mask": (ids != 0).astype("int32")})["pooled_output"]
    else:
        expected = np.asarray(backbone.text_encoder({"token_ids": ids}))
        expected = expected[np.arange(3), ids.argmax(1)] if kind == "clip" else expected
    expect_close(np.asarray(tower(ids)), np.asarray(expected), "the preset's features")
    if kind == "bert":
        for pool in ("first", "mean", "eos"):
            tower.pool = pool
            assert tower(ids).shape == (3, 16)
    with pytest.raises(flipkit.ConfigurationError, match="can't skip tokens"):
        tower(ids, keep=ids[:, :2])


def flip(made, kind="vit", trainable=True, **changes):
    image = KerasNLPImage(made(kind)[1], trainable=trainable)
    text = KerasNLPText(made("bert")[1], length=6)
    return flipkit.FLIP(image, text, **{"mask_ratio": 0.5, "dim": 8, **changes})


def values(model):
    return {v.path: np.array(v) for v in model.weights}


def batch(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype("uint8")
    return {"image": images, "text": rng.integers(1, 60, (8, 6)).astype("int32")}


@pytest.mark.parametrize(
    ("kind", "trainable"),
    [("vit", False), ("vit", True), pytest.param("siglip", False, marks=pytest.mark.slow)],
)
def test_a_tower_is_trained_or_left_as_its_preset_is(made, kind, trainable, tmp_path):
    model = flip(made, kind, trainable)
    model.compile(flipkit.AdamW(1e-2))
    before = values(model)
    model.fit(batch(), batch_size=4, shuffle=False, verbose=0)  # two steps
    after = values(model)
    image = {path for path in before if path.startswith("flip/image/")}
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    ids = {path for path in image if path.endswith("position_ids")}
    assert moved & image == (image - ids if trainable else set())
    assert "flip/image_projection/kernel" in moved
    assert any(path.startswith("flip/text/") for path in moved)
    model.save(tmp_path / "model.keras")
    config = json.loads(json.dumps(flipkit.registry.serialize(model)))
    assert config["config"]["image"]["config"]["preset"] is None  # the file has the weights
    again = flipkit.load_model(tmp_path / "model.keras")
    assert values(again).keys() == after.keys()
    for name, value in model(batch(1)).items():
        np.testing.assert_array_equal(np.asarray(again(batch(1))[name]), np.asarray(value))


def test_a_built_flip_starts_with_the_presets_weights(made):
    model = flip(made, "siglip")
    model.build()
    expected = made("siglip")[0].vision_encoder.weights
    found = [v for v in model.weights if v.path.startswith("flip/image/")]
    assert len(found) == len(expected) == len({v.path for v in found})
    assert not [v.path for v in found if "variable" in v.path]  # numbered by Keras
    for one, other in zip(model.image.network.weights, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=one.path)


def test_dropout_keeps_no_state(made):
    model = flip(made)
    model.build()
    assert not [v.path for v in model.variables if "seed" in v.path]


def test_a_backbone_that_cant_skip_patches_is_refused_with_a_mask(tmp_path):
    backbone = keras_nlp.models.DINOV2Backbone(
        patch_size=4,
        num_layers=1,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(16, 16, 3),
        position_embedding_shape=(16, 16),
    )
    backbone.save_to_preset(str(tmp_path))
    tower = KerasNLPImage(tmp_path)
    with pytest.raises(flipkit.ConfigurationError, match="cannot skip patches"):
        flipkit.FLIP(tower, flipkit.TextTransformer(dim=16, depth=1, heads=2))
    tower.build()
    assert tower(np.zeros((2, 16, 16, 3), "float32")).shape == (2, 16)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda made: KerasNLPImage("nowhere/at/all"), "Can't read the preset nowhere/at/all"),
        (lambda made: KerasNLPImage().build(), "needs a preset"),
        (lambda made: KerasNLPImage(made("vit")[1], pool="max"), "Unknown pool='max'"),
        (lambda made: KerasNLPText(made("bert")[1], length=9), "at most 8 tokens"),
        (lambda made: KerasNLPText(made("siglip")[1], length=4), "exactly 8 tokens"),
        (lambda made: KerasNLPTokenizer()(["a"], 4), "needs a preset"),
    ],
)
def test_what_cant_be_is_refused(made, call, told):
    with pytest.raises(flipkit.ConfigurationError, match=told):
        call(made)


def test_towers_are_described_by_name_and_changed_by_path(made):
    text = flipkit.TextTransformer(vocab=259, length=8, dim=16, depth=1, heads=2)
    image = flipkit.ViT(image_size=16, patch_size=4, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, tokenizer="bytes", dim=8)
    run = flipkit.Run(model, data="captioned_shapes", phases=[flipkit.Phase(8, 8)])
    preset = str(made("vit")[1])
    run = run.with_overrides({"model.image": "keras_nlp_image", "model.image.preset": preset})
    assert isinstance(run.model.image, KerasNLPImage)
    assert run.model.image.dim == 16
    again = flipkit.Run.from_config(json.loads(json.dumps(run.get_config())))
    assert again.model.image.preset == preset


# Tokenizers


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    make("bert").save_to_preset(str(folder))
    tokenizer = keras_nlp.models.BertTokenizer(vocabulary=WORDS, lowercase=True)
    tokenizer.save_to_preset(str(folder))
    return tokenizer, folder


def test_ids_are_keras_nlps_between_start_and_end(words):
    known, folder = words
    tokenizer = KerasNLPTokenizer(folder)
    assert (tokenizer.vocab, tokenizer.pad, tokenizer.start, tokenizer.end) == (len(WORDS), 0, 2, 3)
    texts = ["a red cat", "DOG", "", "ünknown 1"]
    rows = tokenizer(texts, 16)
    for row, text in zip(rows, texts, strict=True):
        ids = [int(i) for i in known([text])[0]]
        assert row.tolist() == [2, *ids, 3] + [0] * (14 - len(ids))
    plain = KerasNLPTokenizer(folder, add_start=False, add_end=False)
    assert plain(["ab"], 3).tolist() == [[WORDS.index("a"), WORDS.index("##b"), 0]]
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(texts, 16), rows)


def test_a_file_holds_the_tokenizer_and_needs_no_preset(made, words, tmp_path, monkeypatch):
    model = flip(made, tokenizer=KerasNLPTokenizer(words[1]))
    model.build()
    model.save(tmp_path / "model.keras")
    for name in ("backbone_config", "weights", "_load"):
        monkeypatch.setattr(presets, name, None)  # no preset is looked at any more
    monkeypatch.setattr(keras_nlp.models.Tokenizer, "from_preset", None)
    again = flipkit.load_model(tmp_path / "model.keras")
    texts = ["a red cat", "two dogs"]
    np.testing.assert_array_equal(again.tokenizer(texts, 8), model.tokenizer(texts, 8))
    np.testing.assert_array_equal(again.encode_texts(texts), model.encode_texts(texts))


# The package


def test_names_are_offered_without_importing_keras_nlp():
    code = """
import sys
import flipkit, flipkit_keras_nlp
flipkit.plugins.register(flipkit_keras_nlp, name="flipkit-keras-nlp")
listed = flipkit.plugins.listing("encoders", "tokenizers")
heavy = {"keras_nlp", "keras_hub", "tensorflow"} & sys.modules.keys()
print(sorted(heavy), {"keras_nlp_image", "keras_nlp_text", "keras_nlp"} <= {c.name for c in listed})
"""
    folder = pathlib.Path(str(flipkit_keras_nlp.__file__)).parents[1]
    root = pathlib.Path(flipkit.__file__).parents[1]
    env = {**os.environ, "FLIPKIT_PLUGINS": "", "PYTHONPATH": f"{folder}:{root}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert not done.returncode, done.stderr
    assert done.stdout.strip() == "[] True"


def test_pyproject_names_the_package_with_the_hooks():
    text = pathlib.Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    module = tomllib.loads(text)["project"]["entry-points"]["flipkit"]["keras_nlp"]
    assert module == flipkit_keras_nlp.__name__
    assert keras.saving.get_registered_name(KerasNLPImage) == "flipkit_keras_nlp>KerasNLPImage"
