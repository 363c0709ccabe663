"""Losses and metrics of large batches: in blocks, on several devices, and in one piece they are equal."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flipkit import losses
from flipkit.losses import blocks, pairs

COUNT, DIM = 136, 24


def vectors(seed):
    """Pairs of a student and of a teacher that resembles it: unit vectors (136, 24)."""
    rng = np.random.default_rng(seed)

    def unit(x):
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")

    image = unit(rng.normal(size=(COUNT, DIM)))
    text = unit(0.3 * image + 0.2 * rng.normal(size=(COUNT, DIM)))
    return image, text, *(unit(x + 0.1 * rng.normal(size=x.shape)) for x in (image, text))


def contrastive(image, text, scale):
    return losses.ContrastiveLoss()(image, text, scale)


def smoothed(image, text, scale):
    return losses.ContrastiveLoss(label_smoothing=0.1)(image, text, scale)


def sigmoid(image, text, scale):
    return losses.SigmoidLoss()(image, text, scale, -10.0)


def distilled(image, text, scale):
    *_, teacher_image, teacher_text = vectors(0)
    both = pairs.divergences((image, teacher_image), (text, teacher_text), (scale, 30.0))
    return sum(map(jnp.mean, both))


LOSSES = {f.__name__: f for f in (contrastive, smoothed, sigmoid, distilled)}
TEXTS = (1, 20, 135)  # texts in a block: one; 20 after a first block of 16; all but one


def slopes(loss, scale):
    """The loss, and its gradient to image, text and scale."""
    image, text, *_ = vectors(0)
    value, gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(image, text, np.float32(scale))
    return [np.asarray(x) for x in (value, *gradient)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("texts", TEXTS)
def test_blocks_change_neither_a_loss_nor_its_gradient(monkeypatch, name, scale, texts):
    whole = slopes(LOSSES[name], scale)
    monkeypatch.setattr(blocks, "BLOCK", texts * COUNT)
    # A logit of 100 has an error of 6e-8 of it, and so has its exp.
    for found, expected in zip(slopes(LOSSES[name], scale), whole, strict=True):
        assert np.abs(found - expected).max() <= (1e-6 + 4e-8 * scale) * np.abs(expected).max()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_in_blocks_is_that_of_finite_differences(monkeypatch, name):
    image, text, *_ = vectors(0)
    monkeypatch.setattr(blocks, "BLOCK", 20 * COUNT)
    _, *gradient = slopes(LOSSES[name], 5.0)
    rng = np.random.default_rng(1)
    step = [rng.normal(size=np.shape(x)).astype("float32") for x in gradient]
    expected = sum(np.sum(a * b) for a, b in zip(gradient, step, strict=True))
    loss = jax.jit(LOSSES[name])
    up, down = (
        loss(image + e * step[0], text + e * step[1], np.float32(5 + e * step[2]))
        for e in (3e-3, -3e-3)
    )
    assert (float(up) - float(down)) / 6e-3 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("texts", TEXTS)
def test_what_is_nearest_is_found_in_blocks(monkeypatch, texts):
    image, text, *_ = vectors(0)
    monkeypatch.setattr(blocks, "BLOCK", texts * COUNT)
    similar = image @ text.T
    for axis, found in zip((1, 0), jax.jit(pairs.nearest)(image, text, 20.0), strict=True):
        np.testing.assert_array_equal(found, np.diag(similar) >= similar.max(axis))
        assert 0 < np.sum(found) < COUNT
    image[3] = np.nan
    to_text, to_image = jax.jit(pairs.nearest)(image, text, 20.0)
    assert not to_text[3]
    assert np.any(to_text)
    assert not np.any(to_image)  # each is compared with one that is no number


def test_equal_models_do_not_diverge(monkeypatch):
    image, text, *_ = vectors(0)
    for texts in (COUNT, 20):
        monkeypatch.setattr(blocks, "BLOCK", texts * COUNT)
        for found in pairs.divergences((image, image), (text, text), (20.0, 20.0)):
            np.testing.assert_array_equal(found, 0)


def test_a_teacher_does_not_learn(monkeypatch):
    image, text, teacher, other = vectors(0)
    monkeypatch.setattr(blocks, "BLOCK", 20 * COUNT)

    def loss(teacher, other, scale):
        return sum(map(jnp.sum, pairs.divergences((image, teacher), (text, other), (9.0, scale))))

    for gradient in jax.grad(loss, (0, 1, 2))(teacher, other, 30.0):
        assert not np.any(gradient)


def test_a_large_batch_has_no_array_of_all_logits(monkeypatch):
    count, dim = 8_192, 16
    monkeypatch.setattr(blocks, "BLOCK", 128 * count)
    given = [jax.ShapeDtypeStruct((count, dim), "float32")] * 2
    for loss in (contrastive, sigmoid):
        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given, 20.0).compile()
        assert (
            program.memory_analysis().temp_size_in_bytes < count**2 / 2
        )  # an eighth of the logits
        assert not re.search(r"\[8192,8192\]", program.as_text())


ON_EIGHT = """
import json, keras, re, jax, numpy as np
from flipkit.losses import blocks, pairs
import sys
sys.path.insert(0, {folder!r})
from test_blocks import COUNT, LOSSES, slopes, vectors
D = keras.distribution
meshes = dict(
    data_parallel=D.DataParallel(auto_shard_dataset=False),
    product=D.ModelParallel(
        layout_map=D.LayoutMap(mesh := D.DeviceMesh((4, 2), ("batch", "model"), D.list_devices())),
        batch_dim_name="batch", auto_shard_dataset=False,
    ),
)
found, worst = {{}}, 0.0
for name, loss in LOSSES.items():
    for scale in (1.0, 100.0):
        D.set_distribution(None)
        blocks.BLOCK = 1 << 23
        alone = slopes(loss, scale)
        for mesh in meshes.values():
            D.set_distribution(mesh)
            for texts in (COUNT, 20):
                blocks.BLOCK = texts * COUNT // 8
                for one, other in zip(slopes(loss, scale), alone, strict=True):
                    worst = max(worst, float(np.abs(one - other).max() / np.abs(other).max()))
found["worst"] = worst
image, text, *_ = vectors(0)
D.set_distribution(None)
alone = pairs.nearest(image, text, 20.0)
D.set_distribution(meshes["data_parallel"])
blocks.BLOCK = 20 * COUNT // 8
eight = jax.jit(pairs.nearest)(image, text, 20.0)
found["nearest"] = [np.array_equal(a, b) for a, b in zip(alone, eight, strict=True)]

rows = meshes["data_parallel"].get_data_layout((COUNT, 24)).backend_layout
given = [jax.ShapeDtypeStruct((COUNT, 24), "float32", sharding=rows)] * 2
for name in ("contrastive", "sigmoid"):
    text = jax.jit(jax.value_and_grad(LOSSES[name], (0, 1))).lower(*given, 20.0).compile().as_text()
    found[name] = sorted(set(re.findall(r"\\w+\\[(?:\\d+,)*" + str(COUNT) + r"(?:,\\d+)*\\]", text)))
print(json.dumps(found))
"""


def test_eight_devices_compare_what_one_does(fresh, request):
    code = ON_EIGHT.format(folder=str(request.path.parent))
    found = json.loads(fresh(code, devices=8).splitlines()[-1])
    assert found["worst"] < 5e-6
    assert found["nearest"] == [True, True]
    # On a device, nothing has the global batch as an axis but the gathered vectors, their gradient, and
    # one number for each of them.
    for name in ("contrastive", "sigmoid"):
        assert {*found[name]} <= {f"f32[{COUNT},{DIM}]", f"f32[{COUNT}]", f"s32[{COUNT}]"}, found[
            name
        ]
        assert f"f32[{COUNT},{DIM}]" in found[name]
