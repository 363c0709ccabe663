"""Micro-batches change the memory of a step and nothing else."""

import json

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit.paths import canonical

BATCH = 48


def model(masker="random", text_masker=None, *, dropout=0.1, seed=3, **settings):
    """Two small towers with dropout and stochastic depth, half of the patches masked."""
    image = flipkit.ViT(32, 8, 32, 2, 4, dropout=dropout, drop_path=dropout)
    text = flipkit.TextTransformer(64, 12, 32, 2, 4, dropout=dropout)
    masks = {"masker": masker, "mask_ratio": 0.75 if masker else 0.0}
    if text_masker:
        masks |= {"text_masker": text_masker, "text_mask_ratio": 0.5}
    return flipkit.FLIP(image, text, dim=24, seed=seed, **masks, **settings)


def batch(size=BATCH):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size, 32, 32, 3), "uint8")
    return {"image": pixels, "text": rng.integers(1, 64, (size, 12), "int32")}


def trained(microbatch, made=model, steps=3, optimizer=None, loss="contrastive", **settings):
    """(losses, {path: variable's value}) after some steps of fit."""
    flip = made(**settings)
    flip.compile(optimizer() if optimizer else flipkit.AdamW(1e-3), loss=loss, microbatch=microbatch)
    data = ((batch(),) for _ in range(steps))
    history = flip.fit(data, steps_per_epoch=1, epochs=steps, verbose=0).history
    history.pop("pairs_per_second"), history.pop("data_wait")
    return history, {canonical(v.path): v.numpy() for v in flip.variables}


def gradients(flip, microbatch):
    """(loss, {path: gradient}) of the first step."""
    flip.compile("sgd", microbatch=microbatch)
    flip.optimizer.build(flip.trainable_variables)
    names = ("trainable_variables", "non_trainable_variables", "metrics_variables")
    values = [[v.value for v in getattr(flip, name)] for name in names]
    optimizer = [v.value for v in flip.optimizer.variables]

    def step(x):
        return flip.loss_and_gradient()(
            *values, x, None, None, training=True, optimizer_variables=optimizer
        )

    (loss, _), found = jax.jit(step)(batch())
    paths = [canonical(v.path) for v in flip.trainable_variables]
    return float(loss), dict(zip(paths, map(np.asarray, found), strict=True))


def worst(found, expected):
    """The largest difference of a tensor beside its largest element, key biases (of gradient 0) left out."""
    return max(
        np.abs(found[path] - value).max() / max(np.abs(value).max(), 1e-30)
        for path, value in expected.items()
        if "key/bias" not in path
    )


@pytest.mark.parametrize("microbatch", [24, 12, 6, 1])
def test_the_gradient_is_that_of_the_whole_batch(microbatch):
    loss, expected = gradients(model(), None)
    found_loss, found = gradients(model(), microbatch)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert worst(found, expected) < 1e-5
    assert max(np.abs(v).max() for p, v in found.items() if "key/bias" in p) < 1e-6


def sgd(**settings):
    return lambda: keras.optimizers.SGD(0.1, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"text_masker": "random"},
        {"masker": None},
        {"reconstruction": True},
        {"loss": "sigmoid", "init_logit_bias": -10.0, "temperature": 0.1},
        {"optimizer": sgd(use_ema=True, global_clipnorm=0.01)},
        {"frozen": ["image"], "image_projection": "linear"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_training_is_that_of_whole_batches(settings):
    if settings.get("reconstruction"):
        settings = {"reconstruction": flipkit.MAEDecoder(16, 1, 2)}
    settings = {"optimizer": sgd(), **settings}
    settings.pop("image_projection", None)
    history, expected = trained(None, **settings)
    found_history, found = trained(12, **settings)
    for name, values in history.items():
        np.testing.assert_allclose(found_history[name], values, rtol=2e-5, atol=1e-6)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=2e-6, err_msg=path)
