import functools
import json
import math
import subprocess
import sys

import flipkit_convnext_encoder as plugin
import numpy as np
import pytest
from flipkit_convnext_encoder import ConvNeXt, ConvNeXtBlock

import flipkit
from flipkit import testing
from flipkit.testing.check import expect_close

small = functools.partial(ConvNeXt, 4, (1, 1), 16)


def checks():
    for check in testing.check_encoder(small):
        marks = pytest.mark.slow if check.slow else ()
        yield pytest.param(check, id=str(check), marks=marks)


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_an_encoder_must(check):
    check()


@pytest.fixture
def model():
    """Makes a FLIP on a small tower; keywords are the tower's."""

    def make(mask_ratio=0.0, **settings):
        text = flipkit.TextTransformer(32, 6, dim=16, depth=1, heads=2)
        return flipkit.FLIP(small(**settings), text, mask_ratio=mask_ratio, dim=8)

    return make


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype("uint8")
    return {"image": images, "text": rng.integers(1, 32, (8, 6)).astype("int32")}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as torchvision counts them, with a head for 1000 classes; the paper's Table 1 rounds to millions
        ("convnext_tiny", 28_589_128),
        ("convnext_small", 50_223_688),
        ("convnext_base", 88_591_464),
        ("convnext_large", 197_767_336),
    ],
)
def test_it_has_as_many_parameters_as_are_published(name, parameters):
    encoder = flipkit.encoders.shape_only(plugin.flipkit_encoders()[name]())
    assert flipkit.encoders.weights(encoder) + 1000 * encoder.dim + 1000 == parameters


def convolved(x, kernel):
    """Depthwise, by a sum over shifted pictures: x (height, width, dim), kernel (7, 7, dim)."""
    padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
    rows, columns = x.shape[:2]
    shifts = [padded[i : i + rows, j : j + columns] * kernel[i, j] for i, j in np.ndindex(7, 7)]
    return sum(shifts)


def test_a_block_computes_what_the_paper_draws():
    """Figure 4 of the paper, in plain NumPy."""
    block, rng = ConvNeXtBlock(3), np.random.default_rng(0)
    block.build((None, 5, 4, 3))
    values = {v.path.partition("/")[2]: rng.normal(size=v.shape) for v in block.weights}
    for variable in block.weights:
        variable.assign(values[variable.path.partition("/")[2]])
    x = rng.normal(size=(5, 4, 3))
    y = convolved(x, values["mix/kernel"][..., 0]) + values["mix/bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * values["norm/gamma"] + values["norm/beta"]
    y = y @ values["up/kernel"] + values["up/bias"]
    y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
    y = (y @ values["down/kernel"] + values["down/bias"]) * values["gamma"]
    expect_close(np.asarray(block(x[None]))[0], x + y, "the paper's block")


def test_a_mask_is_refused(model):
    assert not hasattr(small(), "grid")
    with pytest.raises(flipkit.ConfigurationError, match="ConvNeXt cannot skip patches"):
        model(mask_ratio=0.5)


def test_it_learns_without_a_mask(model, pairs):
    trained = model(drop_path=0.2)
    trained.compile(flipkit.AdamW(1e-3, no_decay=["gamma", "beta", "bias"]))
    history = trained.fit(pairs, batch_size=8, epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert trained.masking_summary().startswith("Training keeps the whole image")


def test_what_a_row_skips_does_not_depend_on_its_batch():
    block = ConvNeXtBlock(2, drop_path=0.5, layer_scale=1.0)
    x = np.random.default_rng(0).normal(size=(32, 3, 3, 2)).astype("float32")
    block.build(x.shape)
    with flipkit.random.seed_scope(flipkit.Seed(0)):
        whole, half = (np.asarray(block(rows, training=True)) for rows in (x, x[:16]))
    expect_close(half, whole[:16], "the rows of a larger batch", 1e-6)
    skipped = (whole == x).all(axis=(1, 2, 3))
    assert 8 < skipped.sum() < 24
    # Those that don't skip it go through twice as strongly.
    branch = np.asarray(block(x)) - x
    expect_close((whole - x)[~skipped], 2 * branch[~skipped], "twice the branch")


def test_rates_grow_from_the_first_block_to_the_last():
    blocks = [layer for layer in ConvNeXt(8, (1, 2, 1), 16, drop_path=0.3).trunk]
    rates = [layer.drop_path for layer in blocks if isinstance(layer, ConvNeXtBlock)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("size", [60, (64, 48)])
def test_a_size_that_its_stages_do_not_divide_is_refused(size):
    with pytest.raises(flipkit.ConfigurationError, match="divisible by 32"):
        ConvNeXt(8, image_size=size)


def test_the_sides_may_differ():
    encoder = ConvNeXt(4, (1, 1), (16, 24))
    encoder.build()
    assert encoder(np.zeros((2, 16, 24, 3), "float32")).shape == (2, 8)


def flipkit_command(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True)


def multiply_adds(width, depths, side):
    """Of the trunk, counted by hand: what shrinks a stage's input, then its blocks."""
    total, before = 0, 3
    for stage, depth in enumerate(depths):
        channels, step = width * 2**stage, 2 if stage else 4
        side //= step
        block = 49 * channels + 2 * channels * 4 * channels
        total += side**2 * (step**2 * before * channels + depth * block)
        before = channels
    return total


@pytest.mark.slow
def test_plan_counts_its_convolutions(tmp_path):
    settings = ("scale=tiny", "mask_ratio=0", "model.image=convnext_tiny")
    flipkit_command("flipkit.plan", "flip_shapes", *settings, "--json", str(tmp_path / "plan.json"))
    plan = json.loads((tmp_path / "plan.json").read_text())
    expected = multiply_adds(96, (3, 3, 9, 3), 224)
    assert plan["masking"][0]["flops_by_tower"]["image"] == 2 * expected
    assert round(expected / 1e9, 1) == 4.5  # what the paper's Table 1 calls FLOPs
    assert plan["towers"]["image"]["tokens"] is None


@pytest.mark.slow
def test_a_run_takes_it_by_name(tmp_path):
    image = ("model.image=convnext_atto", "model.image.width=8", "model.image.image_size=32")
    settings = ("scale=tiny", "mask_ratio=0", *image, "--workdir", str(tmp_path))
    flipkit_command("flipkit.run", "flip_shapes", *settings)
    again = flipkit.load_model(tmp_path / "model.keras")
    assert (type(again.image).__name__, again.image.dim) == ("ConvNeXt", 64)
