import json

import jax
import keras
import numpy as np
import pytest
from keras import ops

from flipkit import losses
from flipkit.errors import ConfigurationError, UnknownName


def units(batch, dim=8, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")


def reference(image, text, scale, smoothing=0.0):
    """Symmetric InfoNCE in float64: the mean of both cross-entropies with smoothed targets."""
    logits = scale * image.astype("float64") @ text.astype("float64").T
    batch = len(logits)
    target = (1 - smoothing) * np.eye(batch) + smoothing / batch
    total = 0.0
    for scores in (logits, logits.T):
        shifted = scores - scores.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        total += -(target * log_p).sum(axis=1).mean()
    return total / 2


def reference_gradient(image, text, scale, smoothing=0.0):
    """Of `reference`, to image, text and scale: softmax minus target, in float64."""
    image, text = image.astype("float64"), text.astype("float64")
    logits, batch = scale * image @ text.T, len(image)
    target = (1 - smoothing) * np.eye(batch) + smoothing / batch
    rows, columns = (np.exp(logits - logits.max(axis=axis, keepdims=True)) for axis in (1, 0))
    slope = rows / rows.sum(axis=1, keepdims=True) + columns / columns.sum(axis=0, keepdims=True)
    slope = (slope - 2 * target) / (2 * batch)
    return scale * slope @ text, scale * slope.T @ image, (slope * (image @ text.T)).sum()


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_symmetric_infonce(batch, scale, smoothing):
    image, text = units(batch), units(batch, seed=1)
    found = losses.ContrastiveLoss(smoothing)(image, text, np.float32(scale))
    assert found.dtype == "float32"
    expected = reference(image, text, scale, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_its_gradient_is_softmax_minus_target(smoothing):
    image, text, scale = units(9), units(9, seed=1), np.float32(14.3)
    found = jax.grad(losses.ContrastiveLoss(smoothing), argnums=(0, 1, 2))(image, text, scale)
    for gradient, expected in zip(
        found, reference_gradient(image, text, scale, smoothing), strict=True
    ):
        np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_its_gradient_is_that_of_finite_differences():
    image, text, scale = units(4), units(4, seed=1), 5.0
    gradient = reference_gradient(image, text, scale)[0]
    for row, column in [(0, 0), (1, 5), (3, 7)]:
        change = np.zeros((4, 8))
        change[row, column] = 1e-5
        up, down = (reference(image.astype("float64") + s * change, text, scale) for s in (1, -1))
        assert (up - down) / 2e-5 == pytest.approx(gradient[row, column], abs=1e-8)


def test_aligned_pairs_at_scale_100_stay_finite_where_a_plain_exp_overflows():
    image = units(16)
    scale = np.float32(100)
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(scale * image @ image.T)).any()
    loss, gradient = jax.value_and_grad(losses.ContrastiveLoss())(image, image, scale)
    # What is left of logits of 100, whose float32 rounding is 1.2e-5.
    np.testing.assert_allclose(loss, reference(image, image, 100.0), rtol=0, atol=5e-5)
    assert np.isfinite(gradient).all()
    opposite, gradient = jax.value_and_grad(losses.ContrastiveLoss())(image, -image, scale)
    np.testing.assert_allclose(opposite, reference(image, -image, 100.0), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_the_order_of_pairs_and_the_exchange_of_towers_do_not_matter():
    image, text = units(16), units(16, seed=1)
    loss = losses.ContrastiveLoss()
    order = np.random.default_rng(2).permutation(16)
    np.testing.assert_allclose(
        loss(image[order], text[order], 10.0), loss(image, text, 10.0), rtol=1e-6
    )
    np.testing.assert_allclose(loss(text, image, 10.0), loss(image, text, 10.0), rtol=1e-6)


def test_alike_embeddings_lose_the_logarithm_of_the_batch():
    image = np.repeat(units(1), 8, axis=0)
    np.testing.assert_allclose(losses.ContrastiveLoss()(image, image, 20.0), np.log(8), rtol=1e-6)


def test_one_pair_loses_nothing():
    np.testing.assert_allclose(losses.ContrastiveLoss()(units(1), units(1), 20.0), 0, atol=1e-6)


def test_smoothing_makes_certainty_cost():
    image = np.eye(8, dtype="float32")
    sharp, smooth = (losses.ContrastiveLoss(s)(image, image, 100.0) for s in (0.0, 0.1))
    assert float(sharp) == pytest.approx(0, abs=1e-6)
    assert float(smooth) == pytest.approx(0.1 * 100 * 7 / 8, rel=1e-5)


def test_bfloat16_embeddings_are_compared_in_float32():
    image, text = (ops.cast(x, "bfloat16") for x in (units(16), units(16, seed=1)))
    exact = losses.ContrastiveLoss()(*(ops.cast(x, "float32") for x in (image, text)), 100.0)
    found = losses.ContrastiveLoss()(image, text, 100.0)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, exact)
    assert losses.similarity(image, text, 100.0).dtype == "float32"


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (117.0, -12.9), (1.0, 3.0)])
def test_the_sigmoid_loss_asks_of_each_pair_whether_it_is_one(batch, scale, bias):
    image, text = units(batch), units(batch, seed=1)
    logits = scale * image.astype("float64") @ text.astype("float64").T + bias
    minus_log_chance = np.where(np.eye(batch), np.logaddexp(0, -logits), np.logaddexp(0, logits))
    expected = minus_log_chance.sum() / batch
    found = losses.SigmoidLoss()(image, text, np.float32(scale), logit_bias=np.float32(bias))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_sigmoid_loss_and_its_gradient_stay_finite():
    image = units(8)
    for text in (image, -image):
        loss, slopes = jax.value_and_grad(losses.SigmoidLoss(), argnums=(0, 1, 2, 3))(
            image, text, 1e4, -5e3
        )
        assert np.isfinite(loss)
        assert all(np.isfinite(slope).all() for slope in slopes)


def test_siglips_first_values_nearly_balance_the_many_wrong_pairs():
    """Section 3.2 of arXiv 2303.15343: the right pairs make the loss at first, 10 each."""
    found = losses.SigmoidLoss()(units(256, 64), units(256, 64, seed=1), 10.0, logit_bias=-10.0)
    assert float(found) == pytest.approx(10, abs=0.5)


def test_similarity_has_images_in_rows():
    image, text = units(3), units(5, seed=1)
    found = losses.similarity(image, text, 2.0)
    np.testing.assert_allclose(found, 2 * image @ text.T, atol=1e-6)


def test_the_config_tells_everything():
    loss = losses.ContrastiveLoss(label_smoothing=0.1)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = losses.get(config)
    assert type(again) is losses.ContrastiveLoss
    assert again.label_smoothing == 0.1
    assert repr(loss) == "ContrastiveLoss(label_smoothing=0.1)"


def test_a_loss_is_named_made_or_given():
    assert type(losses.get("contrastive")) is losses.ContrastiveLoss
    assert type(losses.get("sigmoid")) is losses.SigmoidLoss
    assert type(losses.get(losses.ContrastiveLoss)) is losses.ContrastiveLoss
    loss = losses.ContrastiveLoss()
    assert losses.get(loss) is loss
    with pytest.raises(UnknownName, match="'contrastive'"):
        losses.get("contrastiv")
    with pytest.raises(ConfigurationError, match="losses"):
        losses.get(3)
    with pytest.raises(NotImplementedError, match="Loss defines no __call__"):
        losses.Loss()(None, None, 1.0)
