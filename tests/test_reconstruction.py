"""MAE's decoder against plain NumPy, and what it does to FLIP's training."""

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit import layers
from flipkit.errors import ConfigurationError
from flipkit.models.reconstruction import dropped_ids


@pytest.fixture(scope="module")
def masked(tiny):
    """A FLIP that reconstructs, built."""
    model = tiny(reconstruction=flipkit.MAEDecoder(dim=12, depth=1, heads=2), seed=3)
    model.build()
    return model


def kept(batch, patches, keep, seed=0):
    rng = np.random.default_rng(seed)
    every = rng.permuted(np.tile(np.arange(patches), (batch, 1)), axis=1)
    return np.sort(every[:, :keep], axis=1).astype("int32")


def test_the_dropped_are_those_that_are_not_kept():
    ids = kept(5, 9, 4)
    both = np.concatenate([ids, np.asarray(dropped_ids(ids, 9))], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(9), (5, 1)))
    assert (np.diff(np.asarray(dropped_ids(ids, 9)), axis=1) > 0).all()


def test_the_loss_is_the_squared_error_of_normalised_patches():
    rng = np.random.default_rng(0)
    predicted, pixels = rng.normal(size=(2, 3, 5, 12)).astype("float32")
    spread = pixels.std(axis=2, ddof=1, keepdims=True)
    target = (pixels - pixels.mean(axis=2, keepdims=True)) / spread
    found = flipkit.MAEDecoder(8, 1, 2).loss(predicted, pixels)
    np.testing.assert_allclose(found, ((predicted - target) ** 2).mean(axis=(1, 2)), rtol=1e-4)
    plain = flipkit.MAEDecoder(8, 1, 2, normalise=False).loss(predicted, pixels)
    np.testing.assert_allclose(plain, ((predicted - pixels) ** 2).mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("class_token", [False, True])
def test_tokens_are_put_back_into_their_places(class_token, close):
    """Without blocks' attention what a patch becomes depends on its place and its token alone."""
    decoder = flipkit.MAEDecoder(dim=8, depth=1, heads=2)
    decoder.build((None, None, 6), (3, 3), 12)
    seen = []
    decoder.blocks[0].call = lambda x, **_: seen.append(np.asarray(x)) or x
    ids = kept(4, 9, 4)
    tokens = np.random.default_rng(1).normal(size=(4, class_token + 4, 6)).astype("float32")
    decoder(tokens, ids)
    embedded = np.asarray(decoder.embed(tokens))
    expected = np.tile(np.asarray(decoder.mask_token), (4, 9, 1))
    np.put_along_axis(expected, ids[..., None], embedded[:, class_token:], axis=1)
    expected = expected + decoder.position
    close(seen[0][:, class_token:], expected, ulps=64)
    if class_token:
        close(seen[0][:, 0], embedded[:, 0], ulps=64)


def test_the_order_of_the_kept_does_not_matter(close):
    decoder = flipkit.MAEDecoder(dim=8, depth=1, heads=2)
    decoder.build((None, None, 6), (3, 3), 12)
    ids = kept(2, 9, 4)
    tokens = np.random.default_rng(1).normal(size=(2, 4, 6)).astype("float32")
    turned = decoder(tokens[:, ::-1], ids[:, ::-1])
    close(turned, decoder(tokens, ids), ulps=64)
    assert turned.shape == (2, 5, 12)


def call(model, batch, training):
    others = [v.value for v in model.non_trainable_variables]
    weights = [v.value for v in model.trainable_variables]
    run = jax.jit(lambda w, o, b: model.stateless_call(w, o, b, training=training)[0])
    return {name: np.asarray(x) for name, x in run(weights, others, batch).items()}


def test_reconstruction_leaves_the_embeddings_and_weights_of_flip_alone(tiny, pairs, masked, close):
    plain = tiny(seed=3)
    plain.build()
    weights = {v.path: np.asarray(v) for v in plain.variables}
    more = {v.path: np.asarray(v) for v in masked.variables}
    assert {path for path in more if "/reconstruction/" not in path} == weights.keys()
    for path, value in weights.items():
        np.testing.assert_array_equal(more[path], value, err_msg=path)
    batch = pairs()
    for training in (False, True):
        found, expected = call(masked, batch, training), call(plain, batch, training)
        for name in ("image", "text"):
            close(found[name], expected[name])
        assert ("reconstruction" in found) is training


def test_the_error_is_that_of_the_dropped_patches(masked, pairs):
    batch = pairs()
    ids = kept(8, 16, 5)
    found = call(masked, {**batch, "image_ids": ids}, True)["reconstruction"]
    patches = layers.patchify(np.asarray(masked.preprocessing.normalise(batch["image"])), 4)
    patches = np.asarray(patches)
    dropped = np.asarray(dropped_ids(ids, 16))
    chosen = np.take_along_axis(patches, ids[..., None], axis=1)
    predicted = masked.reconstruction(masked.image.tokens(chosen, ids=ids), ids)
    target = np.take_along_axis(patches, dropped[..., None], axis=1)
    expected = masked.reconstruction.loss(predicted, target)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_training_learns_to_reconstruct_and_logs_it(tiny, pairs, tmp_path):
    decoder = flipkit.MAEDecoder(dim=12, depth=1, heads=2, weight=0.5)
    model = tiny(reconstruction=decoder, seed=3)
    model.compile(flipkit.AdamW(3e-3))
    batch = pairs()
    batch["image"] = np.repeat(np.repeat(batch["image"][:, ::4, ::4], 4, axis=1), 4, axis=2)
    batch["image"][:, ::2] //= 2  # stripes in every patch, which can be learned
    before = call(model, batch, True)
    pairs_alone = flipkit.ContrastiveLoss()(before["image"], before["text"], model.scale)
    logs = model.fit(batch, batch_size=8, epochs=30, shuffle=False, verbose=0).history
    assert logs["reconstruction_loss"][-1] < 0.7 * logs["reconstruction_loss"][0]
    first = logs["reconstruction_loss"][0]
    assert first == pytest.approx(before["reconstruction"].mean(), rel=1e-4)
    assert logs["loss"][0] == pytest.approx(float(pairs_alone) + 0.5 * first, rel=1e-5)
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras")
    assert again.reconstruction.get_config() == decoder.get_config()
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=one.path)


def test_nothing_is_reconstructed_where_nothing_is_dropped(tiny, pairs):
    model = tiny(reconstruction=flipkit.MAEDecoder(8, 1, 2), mask_ratio=0.0)
    model.compile(flipkit.AdamW(1e-3))
    logs = model.fit(pairs(), batch_size=8, verbose=0).history
    assert "reconstruction_loss" not in logs


def test_what_cannot_be_reconstructed_is_refused(tiny, pairs, masked):
    ids = kept(8, 16, 5)
    patches = np.zeros((8, 5, 48), "uint8")
    with pytest.raises(ConfigurationError, match="the host has dropped"):
        masked({"patches": patches, "image_ids": ids}, training=True)
    with pytest.raises(ConfigurationError, match=r"MAEDecoder.*Received: 3"):
        tiny(reconstruction=3)
    tower = keras.layers.Dense(8)
    tower.dim, tower.image_size = 8, 16
    with pytest.raises(ConfigurationError, match="Dense hands out no tokens"):
        tiny(image=tower, mask_ratio=0, reconstruction=flipkit.MAEDecoder())
    with pytest.raises(ConfigurationError, match=r"divisible by 4\. Received: dim=10"):
        flipkit.MAEDecoder(dim=10)
