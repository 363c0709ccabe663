"""The same numbers as the official FLIP code (facebookresearch/flip), recorded in ../shared/golden."""

import json
import pathlib
import types

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit import losses
from flipkit.paths import canonical
from flipkit.weights.t5x import official_name

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "flip_official"


@pytest.fixture(scope="module")
def official():
    """The official weights in a flipkit model, the inputs, and what came out."""
    if not GOLDEN.exists():
        pytest.skip(f"no reference outputs in {GOLDEN}")
    params, inputs, outputs = (
        dict(np.load(GOLDEN / f"{name}.npz")) for name in ("params", "inputs", "outputs_f64")
    )
    model = flipkit.FLIP(
        flipkit.ViT(48, 8, dim=48, depth=3, heads=4),
        flipkit.TextTransformer(vocab=101, length=16, dim=40, depth=2, heads=5),
        dim=24,
        preprocessing=flipkit.Preprocessing((0, 0, 0), (1 / 255,) * 3),  # pixels are normalised
    )
    model.build()
    names = {v.path: official_name(canonical(v.path)) for v in model.trainable_variables}
    assert set(names.values()) == params.keys() - {"img_encoder/posembed_encoder/pos_embedding"}
    for variable in model.trainable_variables:
        variable.assign(params[names[variable.path]].reshape(variable.shape))
    others = [np.array(v) for v in model.non_trainable_variables]

    @jax.jit
    def loss_and_gradient(weights, batch):
        def loss(weights):
            found = model.stateless_call(weights, others, batch, training=True)[0]
            mapping = list(zip(model.trainable_variables, weights, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return losses.ContrastiveLoss()(found["image"], found["text"], model.scale), found

        (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, found, gradient

    def run(mask, weights=None):
        batch = {"image": inputs["image"], "text": inputs["txt"]}
        batch["image_ids"] = np.sort(inputs[f"{mask}/ids_keep"], axis=1)
        weights = [v.value for v in model.trainable_variables] if weights is None else weights
        return loss_and_gradient(weights, batch)

    return types.SimpleNamespace(model=model, names=names, params=params, outputs=outputs, run=run)


@pytest.mark.parametrize("mask", ["mask000", "mask050"])
def test_embeddings_loss_and_gradients_are_the_official_ones(official, mask):
    loss, found, gradients = official.run(mask)
    for name, key in (("image", "z_img"), ("text", "z_txt")):
        expected = official.outputs[f"{mask}/{key}"]
        np.testing.assert_allclose(found[name], expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(loss, official.outputs[f"{mask}/loss"], atol=1e-5)
    grads = np.load(GOLDEN / "grads.npz")
    for gradient, (path, name) in zip(gradients, official.names.items(), strict=True):
        expected = grads[f"{mask}/{name}"].reshape(gradient.shape)
        atol = 1e-6 if path.endswith("key/bias") else 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=atol, rtol=0, err_msg=path)


def test_positions_are_the_official_ones(official):
    table = official.params["img_encoder/posembed_encoder/pos_embedding"]
    np.testing.assert_allclose(official.model.image.position, table[0, 1:], atol=1e-7)
    assert not table[0, 0].any()


def test_three_steps_of_adamw_are_the_official_ones(official):
    told = json.loads((GOLDEN / "adamw.json").read_text())
    rates = [step["learning_rate"] for step in told["log_f64"]]
    optimizer = flipkit.AdamW(1.0, no_decay=["bias", "gamma", "beta", "position"])
    optimizer.build(official.model.trainable_variables)
    for decay, (path, name) in zip(optimizer._decays, official.names.items(), strict=True):
        assert (decay > 0) == told["wd_mask"][name], path
    place = [v is optimizer._learning_rate for v in optimizer.variables].index(True)
    apply = jax.jit(optimizer.stateless_apply)
    weights = [v.value for v in official.model.trainable_variables]
    state = [v.value for v in optimizer.variables]
    for step in range(3):
        loss, _, gradients = official.run("mask050", weights)
        assert float(loss) == pytest.approx(told["log_f64"][step]["loss"], abs=1e-5)
        state[place] = np.float32(rates[step])
        weights, state = apply(state, gradients, weights)
    expected = np.load(GOLDEN / "adamw.npz")
    errors = [
        np.abs(np.asarray(weight) - expected[f"step3/{name}"].reshape(weight.shape)).ravel()
        for weight, (path, name) in zip(weights, official.names.items(), strict=True)
        if not path.endswith("key/bias")  # their gradient is rounding alone
    ]
    errors = np.concatenate(errors)
    assert errors.mean() < 1e-8
    assert np.quantile(errors, 0.999) < 2e-7
    assert errors.max() < 2e-4
