"""The same numbers on each of Keras's backends, from the same weights: JAX's are the reference."""

import importlib.util

import keras
import numpy as np
import pytest

CODE = '''
import keras
import numpy as np
from keras import ops

import flipkit
from flipkit import layers, losses, maskers, random


def numbers(weights, batch):
    """Layers, towers, model and one training step, as {name: array}."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    ids = np.array([[0, 2, 5], [1, 3, 4]], "int32")
    seed = random.Seed(3, 2)
    found = {
        "mix": random.mix(ops.convert_to_tensor([0, 1, -1, 2**31 - 1, -(2**31)], "int32")),
        "uniform": seed.named("a").uniform((3, 4)),
        "masker": maskers.RandomMasker()(
            np.zeros((4, 16, 3), "uint8"), keep=5, grid=(4, 4), seed=seed
        ),
        "patchify": layers.patchify(batch["image"], 4),
        "unpatchify": layers.unpatchify(layers.patchify(batch["image"], 4), 4, (4, 4)),
        "gather": layers.gather(x, ids),
        "similarity": losses.similarity(x[0], x[1], 3.0),
    }
    for name in layers.ACTIVATIONS:
        found[name] = layers.activation(name)(ops.convert_to_tensor(x))
    with random.seed_scope(seed):
        found["dropout"] = layers.Dropout(0.5, name="drop")(x, training=True)
    mask = np.array([[True] * 6, [True] * 4 + [False] * 2])
    for impl in ("einsum", "fused"):
        layer = layers.Attention(8, 2, causal=True, impl=impl)
        layer.build((None, None, 8))
        for variable in layer.variables:
            variable.assign(rng.normal(size=variable.shape) * 0.5)
        rng = np.random.default_rng(0)
        rng.normal(size=(2, 6, 8))
        found[impl] = layer(x, mask=mask)
    assert keras.random.uniform((3,), seed=seed).shape == (3,)

    towers = {"dim": 16, "depth": 1, "heads": 2}
    image = flipkit.ViT(16, 4, **towers, dropout=0.1, drop_path=0.1, positions="learned")
    text = flipkit.TextTransformer(32, 6, **towers, pool="eos", mask_padding=True)
    model = flipkit.FLIP(image, text, dim=8, seed=3, text_masker="random", text_mask_ratio=0.3)
    model.build()
    if not weights:
        weights |= {v.path: ops.convert_to_numpy(v) for v in model.trainable_variables}
    for variable in model.trainable_variables:
        variable.assign(weights[variable.path])
    found = {name: ops.convert_to_numpy(value) for name, value in found.items()}
    found |= model.predict(batch, verbose=0)

    optimizer = flipkit.AdamW(1e-2, epsilon=1e-3, no_decay=["bias"])
    jit = "auto" if keras.backend.backend() == "jax" else False  # quicker to compile
    model.compile(optimizer, losses.ContrastiveLoss(0.1), jit_compile=jit)
    history = model.fit(batch, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    found["losses"] = np.array(history["loss"])
    found["accuracy"] = np.array(history["image_to_text_accuracy"])
    found["step"] = ops.convert_to_numpy(model.step)
    found |= {f"after {v.path}": ops.convert_to_numpy(v) for v in model.trainable_variables}
    logs = model.evaluate(batch, verbose=0, return_dict=True)
    found["evaluated"] = np.array([logs["loss"], logs["image_to_text_accuracy"]])
    return found
'''

MAIN = """
import pathlib

assert keras.backend.backend() == {backend!r}
folder = pathlib.Path({folder!r})
weights, batch = (dict(np.load(folder / f"{{name}}.npz")) for name in ("weights", "batch"))
np.savez(folder / "found.npz", **numbers(weights, batch))
"""


@pytest.fixture(scope="module")
def reference(pairs):
    """Weights, a batch and what JAX makes of them."""
    if keras.backend.backend() != "jax":
        pytest.skip("the reference is computed with KERAS_BACKEND=jax")
    namespace, weights, batch = {}, {}, pairs(4)
    exec(CODE, namespace)
    return weights, batch, namespace["numbers"](weights, batch)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_another_backend_gives_the_same_numbers(backend, reference, fresh, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    weights, batch, expected = reference
    np.savez(tmp_path / "weights.npz", **weights)
    np.savez(tmp_path / "batch.npz", **batch)
    fresh(CODE + MAIN.format(backend=backend, folder=str(tmp_path)), KERAS_BACKEND=backend)
    found = dict(np.load(tmp_path / "found.npz"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        if value.dtype.kind in "iu":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)
