"""Checkpoints as the official FLIP writes them, and the names and shapes of its real models."""

import gzip
import hashlib
import json
import math
import pathlib
import shutil
import zipfile

import msgpack
import numpy as np
import pytest

import flipkit
from flipkit import encoders, recipe
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical, select
from flipkit.weights import t5x

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "flip_official"
HEADS = (4, 5)  # of the tiny model; a checkpoint doesn't tell them


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder with `checkpoint_3` as the official code wrote it for a bucket."""
    if not GOLDEN.exists():
        pytest.skip(f"no reference outputs in {GOLDEN}")
    folder = tmp_path_factory.mktemp("t5x")
    with zipfile.ZipFile(GOLDEN / "t5x_checkpoint.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def checkpoint(recorded, tmp_path):
    """A copy of `checkpoint_3`, to be damaged."""
    return pathlib.Path(shutil.copytree(recorded / "checkpoint_3", tmp_path / "checkpoint_3"))


@pytest.fixture(scope="module")
def model(recorded):
    """What comes out of the recorded checkpoint."""
    return flipkit.load_pretrained(recorded, heads=HEADS)


def test_every_array_is_read_as_it_was_written(recorded):
    manifest = json.loads((GOLDEN / "t5x_manifest.json").read_text())
    found = {
        f"{part}/{name}": array
        for part in ("target", "state")
        for name, array in t5x.read_arrays(recorded / "checkpoint_3", part).items()
    }
    assert found.keys() == manifest.keys()
    assert len(found) == 282
    for name, told in manifest.items():
        array = found[name]
        assert (list(array.shape), str(array.dtype)) == (told["shape"], told["dtype"]), name
        assert hashlib.sha256(array.tobytes()).hexdigest() == told["sha256"], name


def test_index_written_with_a_local_path_gives_the_same_arrays(checkpoint):
    bucket = t5x.read_arrays(checkpoint)
    shutil.copy(GOLDEN / "t5x_checkpoint_file_driver.msgpack", checkpoint / "checkpoint")
    local = t5x.read_arrays(checkpoint)
    assert local.keys() == bucket.keys()
    for name, array in local.items():
        np.testing.assert_array_equal(array, bucket[name], err_msg=name)


def test_embeddings_of_a_loaded_checkpoint_are_the_official_ones(model):
    inputs, outputs = (dict(np.load(GOLDEN / f"{n}.npz")) for n in ("inputs", "outputs_f64"))
    model.preprocessing = flipkit.Preprocessing((0, 0, 0), (1 / 255,) * 3)  # pixels are normalised
    # `predict` takes no normalised pixels.
    found = model({"image": inputs["image"], "text": inputs["txt"]})
    np.testing.assert_allclose(found["image"], outputs["mask000/z_img"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found["text"], outputs["mask000/z_txt"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(model.scale, outputs["mask000/scale"], rtol=1e-6)


def test_sizes_and_options_come_from_the_arrays(model):
    image, text = model.image, model.text
    assert (image.image_size, image.patch_size, image.dim, image.depth) == (48, 8, 48, 3)
    assert (image.heads, image.mlp_dim, image.positions, image.pool) == (4, 192, "sincos", "mean")
    assert image.class_token
    assert (text.vocab, text.length, text.dim, text.depth, text.heads) == (101, 16, 40, 2, 5)
    assert model.dim == 24
    with pytest.raises(ConfigurationError, match=r"vocabulary.*vocab\.txt"):
        model.encode_texts(["a cat"])


def test_learned_positions_keep_their_values(checkpoint):
    table = np.random.default_rng(0).normal(size=(1, 37, 48)).astype("float32")
    name = checkpoint / "target.img_encoder.posembed_encoder.pos_embedding"
    (name / "0.0.0").write_bytes(gzip.compress(table.tobytes()))
    model = flipkit.load_pretrained(checkpoint, heads=HEADS)
    assert model.image.positions == "learned"
    np.testing.assert_array_equal(model.image.position.numpy(), table[0, 1:])


def test_the_newest_checkpoint_of_a_folder_counts(checkpoint):
    newer = checkpoint.with_name("checkpoint_12")
    shutil.copytree(checkpoint, newer)
    (newer / "checkpoint").unlink()
    checkpoint.with_name("checkpoint_90.tmp").mkdir()
    with pytest.raises(ConfigurationError, match="checkpoint_12"):
        flipkit.load_pretrained(checkpoint.parent, heads=HEADS)


def test_unknown_widths_need_heads(recorded):
    with pytest.raises(ConfigurationError, match=r"width 48.*heads=\(image, text\)"):
        flipkit.load_pretrained(recorded)


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_damaged_and_missing_chunks_are_all_named_in_one_error(checkpoint):
    flip_a_byte(checkpoint / "target.img_encoder.embedding.kernel" / "0.0.0.3")
    (checkpoint / "target.txt_encoder.token_embedding.embedding" / "17.0").unlink()
    cut = checkpoint / "target.img_mlp1.kernel" / "0.0"
    cut.write_bytes(cut.read_bytes()[:-20])
    (checkpoint / "target.txt_mlp1.kernel" / ".zarray").write_text("{")
    with pytest.raises(ConfigurationError, match="damaged or incomplete") as problem:
        flipkit.load_pretrained(checkpoint, heads=HEADS)
    told = str(problem.value)
    for name in ("img_encoder/embedding/kernel", "token_embedding/embedding", "img_mlp1/kernel"):
        assert name in told
    assert "17.0" in told
    assert "txt_mlp1/kernel" in told
    assert len(told.splitlines()) == 5


def test_chunk_that_unpacks_to_more_than_its_array_is_refused(checkpoint):
    bomb = gzip.compress(bytes(10_000_000))
    (checkpoint / "target.img_encoder.cls" / "0.0.0").write_bytes(bomb)
    with pytest.raises(ConfigurationError, match=r"img_encoder/cls: .*cut short or too long"):
        flipkit.load_pretrained(checkpoint, heads=HEADS)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_index_is_one_clear_error(checkpoint, share):
    index = checkpoint / "checkpoint"
    index.write_bytes(index.read_bytes()[: int(share * index.stat().st_size)])
    with pytest.raises(ConfigurationError, match="truncated or none"):
        flipkit.load_pretrained(checkpoint, heads=HEADS)


def test_model_of_other_arrays_is_refused_by_their_names(checkpoint):
    index = checkpoint / "checkpoint"
    tree = msgpack.unpackb(index.read_bytes(), strict_map_key=False)
    target = tree["optimizer"]["target"]
    target["txt_encoder"]["cls"] = target["img_encoder"]["cls"]
    del target["img_encoder"]["Transformer"]["encoderblock_01"]["LayerNorm_0"]["scale"]
    target["txt_encoder"]["Transformer"]["encoder_norm"]["scale"] = target["img_encoder"][
        "Transformer"
    ]["encoder_norm"]["scale"]
    index.write_bytes(msgpack.packb(tree))
    with pytest.raises(ConfigurationError) as problem:
        flipkit.load_pretrained(checkpoint, heads=HEADS)
    told = str(problem.value)
    assert "missing: img_encoder/Transformer/encoderblock_01/LayerNorm_0/scale" in told
    assert "unexpected: txt_encoder/cls" in told
    assert "reshaped: txt_encoder/Transformer/encoder_norm/scale" in told


# The real models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["B16", "L16", "H14"])
def test_real_models_have_every_official_variable_with_its_shape_and_its_decay(name):
    if not GOLDEN.exists():
        pytest.skip(f"no recorded shapes in {GOLDEN}")
    told = json.loads((GOLDEN / "real_config_shapes.json").read_text())[name]
    params, config = told["params"], told["model_config"]
    described = flipkit.FLIP(
        flipkit.ViT(224, config["model_img"]["patches"]["size"][0], **sizes(config["model_img"])),
        flipkit.TextTransformer(
            config["model_txt"]["vocab_size"], 32, **sizes(config["model_txt"])
        ),
        dim=config["clr"]["proj_dim_out"],
    )
    model = encoders.shape_only(described)  # 967 million parameters take no memory
    variables = {canonical(v.path): tuple(v.shape) for v in model.trainable_variables}
    found = {
        entry.name: entry.encode([np.broadcast_to(0.0, variables[path]) for path in entry.paths])
        for entry in t5x.entries(model)
    }
    fixed = "img_encoder/posembed_encoder/pos_embedding"
    assert {n: list(a.shape) for n, a in found.items()} == {
        n: told["shape"] for n, told in params.items() if n != fixed
    }
    rows, width = params[fixed]["shape"][1:]
    assert model.image.position.shape == (rows - 1, width)
    assert sum(map(math.prod, variables.values())) + rows * width == told["total_params"]

    no_decay = recipe.make(recipe.load("flip_vitl"), {}).optimizer.no_decay
    exempt = select(no_decay, variables, role="no_decay")  # as AdamW does when it is built
    for path in variables:
        assert (path not in exempt) == params[t5x.official_name(path)]["weight_decay"], path
    assert not params[fixed]["weight_decay"]
    assert not exempt & {"logit_scale", "image/class_token", "text/token_embedding"}


def sizes(config):
    """A tower's arguments from the official ones."""
    stack = config["transformer"]
    names = {"depth": "num_layers", "heads": "num_heads", "mlp_dim": "mlp_dim"}
    return {"dim": config["hidden_size"], **{ours: stack[name] for ours, name in names.items()}}
