import functools
import io
import json
import pathlib
import re
import types

import jax
import keras
import numpy as np
import pytest
from PIL import Image

import flipkit
from flipkit import layers, losses, maskers, optimizers
from flipkit.errors import ConfigurationError, DataError, UnknownName
from flipkit.random import Seed

LOGS = {
    "loss",
    "image_to_text_accuracy",
    "text_to_image_accuracy",
    "logit_scale",
    "gradient_norm",
}
CAPTIONS = ["a red circle", "two blue squares", "a green star above a red square"]


def values(variables):
    return [np.array(v) for v in variables]


def same(found, expected):
    """Whether two lists of arrays hold the same numbers."""
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@functools.cache
def program(model, training):
    """The model's call as one compiled program of its weights and the batch."""

    def call(weights, others, batch):
        return model.stateless_call(weights, others, batch, training=training)[0]

    return jax.jit(call)


def outputs(model, batch, training=False, step=None):
    """What the model makes of a batch at a step of its training."""
    others = [
        np.int32(step) if v is model.step and step is not None else np.asarray(v)
        for v in model.non_trainable_variables
    ]
    found = program(model, training)(values(model.trainable_variables), others, batch)
    return {name: np.asarray(x) for name, x in found.items()}


def assert_same(found, expected, atol=0.0):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=atol, rtol=0, err_msg=name)


@keras.saving.register_keras_serializable(package="test_model")
class ConvTower(keras.layers.Layer):
    """Another person's encoder, without patches."""

    def __init__(self, image_size=16, dim=12, **kwargs):
        super().__init__(**kwargs)
        self.image_size, self.dim = image_size, dim
        self.conv = keras.layers.Conv2D(dim, 4, strides=4, name="conv")

    def build(self, input_shape=None):
        self.conv.build((None, self.image_size, self.image_size, 3))

    def call(self, x, training=False):
        return keras.ops.mean(self.conv(x), axis=(1, 2))

    def get_config(self):
        return {**super().get_config(), "image_size": self.image_size, "dim": self.dim}


@pytest.fixture(scope="module")
def plain(tiny):
    """A model that masks half of the patches, built, not trained."""
    model = tiny(seed=3)
    model.build()
    return model


@pytest.fixture(scope="module")
def trained(tiny, pairs):
    """A model with a tokenizer after three steps, and how it got there."""
    tokenizer = flipkit.WordPiece()
    tokenizer.train(CAPTIONS, vocab=64)
    model = tiny(text={"vocab": 64}, tokenizer=tokenizer, seed=3)
    no_decay = ["bias", "gamma", "beta", "position"]
    model.compile(flipkit.AdamW(1e-2, no_decay=no_decay, global_clipnorm=5.0))
    before = values(model.variables)
    batch = pairs(8, vocab=64)
    history = model.fit(batch, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    return types.SimpleNamespace(model=model, batch=batch, before=before, history=history)


# Masking --------------------------------------------------------------------------------------


def test_a_mask_of_0_is_no_mask(tiny, pairs, plain):
    batch = pairs()
    inference = outputs(plain, batch)
    for changes in ({"mask_ratio": 0}, {"masker": None}):
        model = tiny(seed=3, **changes)
        model.build()
        assert_same(outputs(model, batch, training=True), inference)


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0, 16), (0.5, 8), (0.75, 4), (0.7, 5), (0.95, 1), (0.999, 1)]
)
def test_the_kept_are_rounded_and_at_least_one(tiny, ratio, kept):
    model = tiny(mask_ratio=ratio, text_masker="random", text_mask_ratio=ratio)
    assert model.kept_patches == kept
    assert model.kept_tokens == max(1, round(6 * (1 - ratio)))


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, "half", None])
@pytest.mark.parametrize("name", ["mask_ratio", "text_mask_ratio"])
def test_a_ratio_is_a_share_below_1(tiny, name, ratio):
    with pytest.raises(ConfigurationError, match=rf"\[0, 1\)\. Received: {name}="):
        tiny(**{name: ratio})


def test_training_draws_a_mask_per_step_and_a_step_the_same_again(plain, pairs):
    batch = pairs()
    first, again, later = (outputs(plain, batch, True, step) for step in (0, 0, 1))
    assert_same(again, first)
    assert np.all(np.any(first["image"] != later["image"], axis=1))
    assert_same({"text": later["text"]}, {"text": first["text"]})
    assert np.abs(first["image"] - outputs(plain, batch)["image"]).max() > 1e-3


def test_training_sees_what_its_masker_keeps(plain, pairs):
    batch = pairs()
    patches = np.asarray(layers.patchify(batch["image"], 4))
    seed = Seed(3, 2).named("masker")
    ids = np.asarray(plain.masker(patches, keep=8, grid=(4, 4), seed=seed))
    drawn = outputs(plain, batch, True, step=2)
    assert_same(outputs(plain, {**batch, "image_ids": ids}, True, step=7), drawn, atol=1e-6)


def test_patches_with_ids_are_the_image_with_ids(plain, pairs):
    batch = pairs()
    ids = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(16), (8, 1)), axis=1)[:, :5])
    ids = ids.astype("int32")
    patches = np.take_along_axis(
        np.asarray(layers.patchify(batch["image"], 4)), ids[..., None], axis=1
    )
    cut = {"patches": patches, "image_ids": ids, "text": batch["text"]}
    for training in (False, True):
        expected = outputs(plain, {**batch, "image_ids": ids}, training)
        assert_same(outputs(plain, cut, training), expected, atol=1e-6)
    every = {**batch, "image_ids": np.tile(np.arange(16, dtype="int32"), (8, 1))}
    assert_same(outputs(plain, every), outputs(plain, batch), atol=1e-6)


def step_program(model, batch):
    """The compiled step of training as XLA's text, and the shapes of what the host hands it."""
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    parts = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([v.value for v in variables] for variables in parts)
    program = jax.jit(model.train_step).lower(state, (batch,)).compile()
    entry = next(line for line in program.as_text().splitlines() if "entry_computation" in line)
    return program.as_text(), set(re.findall(r"(?:u8|s32)\[[\d,]+\]", entry.partition("->")[0]))


def test_a_step_with_masks_of_the_host_sorts_nothing_and_is_handed_no_dropped_pixel(tiny, pairs):
    batch = pairs(8)
    ids = np.stack([np.sort(np.random.default_rng(i).permutation(16)[:8]) for i in range(8)])
    patches = np.take_along_axis(
        np.asarray(layers.patchify(batch["image"], 4)), ids[..., None], axis=1
    )
    hosts = {"patches": patches, "image_ids": ids.astype("int32"), "text": batch["text"]}
    drawn, whole = step_program(tiny(seed=3), batch)
    given, kept = step_program(tiny(seed=3), hosts)
    assert re.search(r"\bsort\(", drawn)
    assert not re.search(r"\bsort\(", given)
    assert whole == {"u8[8,16,16,3]", "s32[8,6]"}
    assert kept == {"u8[8,8,48]", "s32[8,8]", "s32[8,6]"}


def test_a_text_masker_keeps_some_tokens_in_training_only(tiny, pairs):
    model = tiny(masker=None, text_masker="random", text_mask_ratio=0.5, seed=3)
    model.build()
    batch = {"text": pairs()["text"]}
    keep = np.asarray(
        model.text_masker(batch["text"], keep=3, grid=(1, 6), seed=Seed(3, 4).named("text_masker"))
    )
    drawn = outputs(model, batch, True, step=4)
    assert_same(outputs(model, {**batch, "text_ids": keep}), drawn, atol=1e-6)
    assert np.abs(drawn["text"] - outputs(model, batch)["text"]).max() > 1e-3


# Pictures of another size ---------------------------------------------------------------------


def test_pictures_of_another_size_are_masked_over_their_own_grid(tiny, pairs):
    model = tiny(seed=3, image_size=(8, 16))
    model.build()
    assert model.grid == (2, 4)
    assert model.kept_patches == 4
    assert model.masking_summary().startswith("Training keeps 4 of 8 patches of 8 x 16 pixels")
    batch = pairs(size=(8, 16))
    found = outputs(model, batch, training=True, step=2)
    patches = layers.patchify(batch["image"], 4)
    seed = Seed(3, 2).named("masker")
    ids = np.asarray(model.masker(patches, keep=4, grid=(2, 4), seed=seed))
    given = outputs(model, {**batch, "image_ids": ids}, training=True, step=2)
    assert_same(found, given, atol=1e-6)


def test_a_model_sees_whole_pictures_of_its_towers_size_whatever_it_trained_at(tiny, pairs):
    small, plain = tiny(seed=3, image_size=8), tiny(seed=3)
    small.build()
    plain.build()
    assert_same(outputs(small, pairs()), outputs(plain, pairs()))
    assert small.encode_images(pairs()["image"]).shape == (8, 8)


def test_smaller_pictures_train_and_are_in_the_config(tiny, pairs, tmp_path):
    model = tiny(seed=3, image_size=8)
    model.compile("adam")
    history = model.fit(pairs(size=8), batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras")
    assert again.image_size == 8
    assert_same(outputs(again, pairs()), outputs(model, pairs()))


def test_pictures_of_a_size_that_nobody_told_are_refused(tiny, pairs):
    model = tiny(seed=3, image_size=8)
    model.compile("adam")
    with pytest.raises(DataError, match=r"pictures of 8 x 8 pixels\. Received: 16 x 16"):
        model.fit(pairs(), batch_size=4, verbose=0)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (10, r"image_size=10 and patch_size=4; the nearest sizes are \[8, 12\]"),
        (2, r"the nearest sizes are \[4\]"),
        ((8, 8, 8), "one side or \\(height, width\\)"),
        (0, "Received: image_size=0"),
        ("8", "Received: image_size='8'"),
    ],
)
def test_a_size_that_cannot_be_is_refused(tiny, size, told):
    with pytest.raises(ConfigurationError, match=told):
        tiny(image_size=size)


def test_an_encoder_of_one_size_is_refused_another(tiny):
    with pytest.raises(ConfigurationError, match="ConvTower sees pictures of one size"):
        tiny(image=ConvTower(), masker=None, mask_ratio=0.0, image_size=8)


def test_masks_are_drawn_as_training_draws_them_and_change_nothing(plain, pairs):
    batch = pairs()
    masks = plain.draw_masks(batch["image"], range(2, 4))
    assert masks.shape == (8, 2, 16)
    ids = np.stack([np.flatnonzero(row) for row in masks[:, 1]]).astype("int32")
    given = outputs(plain, {**batch, "image_ids": ids}, training=True, step=3)
    assert_same(outputs(plain, batch, training=True, step=3), given, atol=1e-6)


def test_a_model_that_keeps_all_has_no_masks_to_draw(tiny, pairs):
    with pytest.raises(ConfigurationError, match="Training keeps every patch"):
        tiny(mask_ratio=0.0).draw_masks(pairs()["image"], range(2))


# Other encoders -------------------------------------------------------------------------------


def test_an_encoder_that_cannot_skip_patches_is_refused_with_a_masker(tiny):
    with pytest.raises(ConfigurationError, match=r"ConvTower cannot skip patches.*mask_ratio=0"):
        tiny(image=ConvTower())
    model = tiny(image=ConvTower(), mask_ratio=0)
    with pytest.raises(ConfigurationError, match=r"mask_ratio=0\.5"):
        model.mask_ratio = 0.5
    assert model.mask_ratio == 0
    assert model.masking_summary() == "Training keeps the whole image and 6 of 6 text tokens."


def test_another_encoder_trains_without_a_mask_under_keras_adam(tiny, pairs, tmp_path):
    model = tiny(image=ConvTower(name="theirs"), mask_ratio=0)
    model.compile(keras.optimizers.Adam(1e-2))
    batch = pairs()
    history = model.fit(batch, batch_size=8, epochs=12, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    paths = {v.path for v in model.trainable_variables}
    assert {"flip/image/conv/kernel", "flip/image/conv/bias", "flip/logit_scale"} <= paths
    assert not [path for path in paths if "theirs" in path]
    model.save(tmp_path / "theirs.keras")
    again = flipkit.load_model(tmp_path / "theirs.keras")
    assert type(again.image) is ConvTower
    assert_same(outputs(again, batch), outputs(model, batch))


# Inputs ---------------------------------------------------------------------------------------


def test_a_batch_without_known_keys_is_refused(plain):
    with pytest.raises(ConfigurationError, match=r"'image' or 'patches'.*\['img'\]"):
        plain({"img": np.zeros((1, 16, 16, 3), "uint8")})


def test_a_loss_needs_pairs(plain, pairs):
    embedded = {"image": np.ones((2, 8), "float32")}
    with pytest.raises(ConfigurationError, match=r"lacks: \['text'\]"):
        plain.compute_loss(y_pred=embedded)


def test_either_tower_embeds_alone(plain, pairs, close):
    batch = pairs()
    both = outputs(plain, batch)
    for name in ("image", "text"):
        alone = outputs(plain, {name: batch[name]})
        assert_same(alone, {name: both[name]}, atol=1e-6)
        assert both[name].dtype == np.float32
        close(np.linalg.norm(both[name], axis=1), 1, ulps=64)


def test_pixels_are_normalised_as_the_preprocessing_says(plain, pairs, close):
    batch = pairs(2)
    pixels = (batch["image"] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    features = np.asarray(plain.image(pixels.astype("float32")))
    embedded = features @ np.asarray(plain.image_projection.kernel)
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    close(outputs(plain, batch)["image"], embedded, ulps=64)


def test_a_zero_vector_stays_finite(plain):
    from flipkit.models.flip import _unit

    found, gradient = jax.value_and_grad(lambda x: _unit(x).sum())(np.zeros((1, 4), "float32"))
    assert found == 0
    assert np.isfinite(gradient).all()


def test_predict_and_encode_agree(trained, close):
    found = trained.model.predict(trained.batch, verbose=0)
    expected = outputs(trained.model, trained.batch)
    assert_same(found, expected, atol=1e-6)
    images = trained.model.encode_images(trained.batch["image"])
    close(images, expected["image"])


def test_images_are_encoded_from_paths_bytes_pillow_and_arrays(trained, tmp_path, close):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), "uint8")
    image = Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, "png")
    path = tmp_path / "image.png"
    path.write_bytes(data.getvalue())
    found = trained.model.encode_images([str(path), path, data.getvalue(), image, pixels])
    assert found.shape == (5, 8)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.tile(found[:1], (5, 1)))
    close(np.linalg.norm(found, axis=1), 1, ulps=64)


def test_texts_are_encoded_by_the_models_own_tokenizer(trained, close):
    found = trained.model.encode_texts(CAPTIONS)
    ids = trained.model.tokenizer(CAPTIONS, 6)
    close(found, outputs(trained.model, {"text": ids})["text"])
    one = trained.model.encode_texts(CAPTIONS[1])
    close(one, found[1:2])
    assert trained.model.encode_texts(iter(CAPTIONS)).shape == (3, 8)


def test_encoding_in_parts_is_encoding_at_once(trained, close):
    texts = [caption[i:] for caption in CAPTIONS for i in range(5)]
    whole, parts = (trained.model.encode_texts(texts, batch_size=n) for n in (256, 4))
    close(parts, whole)


def test_nothing_is_encoded_to_no_rows(trained):
    assert trained.model.encode_texts([]).shape == (0, 8)
    assert trained.model.encode_images([]).shape == (0, 8)


def test_a_model_without_tokenizer_says_so(plain):
    with pytest.raises(ConfigurationError, match="tokenizer="):
        plain.encode_texts(["a cat"])


# Training -------------------------------------------------------------------------------------


def test_fit_logs_what_it_did(trained):
    assert trained.history.keys() == {*LOGS, "pairs_per_second", "data_wait"}
    assert all(np.isfinite(log).all() for log in trained.history.values())
    # The step that compiles is not measured, and the first epoch has no other.
    assert len(trained.history["pairs_per_second"]) == 2
    assert all(rate > 0 for rate in trained.history["pairs_per_second"])
    assert all(0 <= share <= 1 for share in trained.history["data_wait"])
    assert trained.history["logit_scale"][0] == pytest.approx(1 / 0.07, rel=1e-5)
    assert all(0 <= share <= 1 for share in trained.history["image_to_text_accuracy"])


def test_fit_counts_its_steps(trained):
    assert int(trained.model.step) == 3
    assert int(trained.model.optimizer.iterations) == 3


def test_the_first_steps_loss_and_gradient_norm_are_the_batchs(tiny, trained):
    model = tiny(text={"vocab": 64}, seed=3)
    model.build()
    assert same(values(model.variables), trained.before)
    others = values(model.non_trainable_variables)

    def loss(weights):
        found, *_ = model.stateless_call(weights, others, trained.batch, training=True)
        pairs = zip(model.trainable_variables, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(pairs)):
            return losses.ContrastiveLoss()(found["image"], found["text"], model.scale)

    expected, gradient = jax.jit(jax.value_and_grad(loss))(values(model.trainable_variables))
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(g, "float64"))) for g in gradient))
    assert trained.history["loss"][0] == pytest.approx(float(expected), rel=1e-5)
    assert trained.history["gradient_norm"][0] == pytest.approx(norm, rel=1e-4)


def test_evaluate_logs_the_loss_of_unmasked_pairs(trained):
    logs = trained.model.evaluate(trained.batch, verbose=0, return_dict=True)
    assert logs.keys() == LOGS - {"gradient_norm"}
    found = outputs(trained.model, trained.batch)
    scale = np.exp(np.asarray(trained.model.logit_scale))
    expected = losses.ContrastiveLoss()(found["image"], found["text"], scale)
    assert logs["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert logs["logit_scale"] == pytest.approx(float(scale), rel=1e-5)
    logits = found["image"] @ found["text"].T
    right = np.mean(logits.argmax(axis=1) == np.arange(8))
    assert logs["image_to_text_accuracy"] == pytest.approx(right)
    right = np.mean(logits.argmax(axis=0) == np.arange(8))
    assert logs["text_to_image_accuracy"] == pytest.approx(right)
    assert len(trained.model.evaluate(trained.batch, verbose=0)) == 4


@pytest.mark.parametrize(("value", "scale"), [(10, 100), (4.7, 100), (-1, 1), (2, np.exp(2))])
def test_the_logit_scale_is_clipped_and_learns_nothing_outside(plain, value, scale):
    image, text = (np.random.default_rng(i).normal(size=(4, 8)) / 3 for i in range(2))

    def loss(logit_scale):
        with keras.StatelessScope(state_mapping=[(plain.logit_scale, logit_scale)]):
            return plain_loss(image, text, plain.scale)

    plain_loss = losses.ContrastiveLoss()
    found, gradient = jax.value_and_grad(loss)(np.float32(value))
    np.testing.assert_allclose(found, plain_loss(image, text, scale), rtol=1e-5)
    assert (gradient == 0) == (value != 2)


def test_the_logit_scale_may_go_unclipped(tiny):
    model = tiny(max_logit_scale=None)
    model.build()
    for value in (-1.0, 6.0):
        model.logit_scale.assign(value)
        assert float(model.scale) == pytest.approx(np.exp(value))


def test_the_sigmoid_loss_learns_its_bias_in_fit(tiny, pairs):
    model = tiny(init_logit_bias=-10.0, temperature=0.1, max_logit_scale=None)
    model.compile("adamw", "sigmoid")
    assert float(model.logit_bias) == -10
    assert float(model.scale) == pytest.approx(10)
    batch = {**pairs(8), "image_ids": np.tile(np.arange(8, dtype="int32"), (8, 1))}
    outputs = model(batch)
    expected = losses.SigmoidLoss()(outputs["image"], outputs["text"], model.scale, -10.0)
    history = model.fit(batch, batch_size=8, epochs=2, verbose=0).history
    assert history["loss"][0] == pytest.approx(float(expected), rel=1e-5)
    assert float(model.logit_bias) != -10


def test_the_sigmoid_loss_is_refused_without_a_bias(tiny):
    with pytest.raises(
        ConfigurationError, match=r"SigmoidLoss needs a learned bias.*init_logit_bias"
    ):
        tiny().compile("adamw", "sigmoid")


def test_heads_are_linear_affine_or_none(tiny, pairs, close):
    model = tiny(image={"dim": 8}, image_head=None, text_head="affine")
    model.build()
    assert model.image_projection is None
    bias = model.text_projection.bias
    bias.assign(np.arange(8.0))
    batch = pairs(4)
    outputs = model(batch)
    image = np.asarray(model.image(model.preprocessing.normalise(batch["image"])))
    text = np.asarray(model.text(batch["text"])) @ np.asarray(model.text_projection.kernel)
    for key, features in (("image", image), ("text", text + np.arange(8))):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        close(outputs[key], unit, ulps=64)
    with pytest.raises(ConfigurationError, match=r"Expected 8 of them.*dim=16"):
        tiny(image_head=None)
    with pytest.raises(ConfigurationError, match="Unknown head for text_projection: 'mlp'"):
        tiny(text_head="mlp")


def test_another_mask_ratio_compiles_another_program(trained, monkeypatch):
    model, seen = trained.model, []
    random_call = maskers.RandomMasker.call

    def recording(self, x, keep, *, grid, seed):
        seen.append(keep)
        return random_call(self, x, keep, grid=grid, seed=seed)

    monkeypatch.setattr(maskers.RandomMasker, "call", recording)
    weights, step = values(model.variables), int(model.step)
    model.fit(trained.batch, batch_size=8, verbose=0)
    assert not seen  # the same program as before
    model.mask_ratio = 0.75
    model.fit(trained.batch, batch_size=8, verbose=0)
    assert set(seen) == {4}
    assert int(model.step) == step + 2
    model.mask_ratio = 0.5
    for variable, value in zip(model.variables, weights, strict=True):
        variable.assign(value)


def test_accumulated_gradients_are_refused(tiny):
    optimizer = keras.optimizers.AdamW(1e-3, gradient_accumulation_steps=4)
    with pytest.raises(ConfigurationError, match=r"does not enlarge a contrastive batch.*=4"):
        tiny().compile(optimizer)


def test_the_norm_of_gradients_is_logged_before_they_are_clipped(tiny, pairs):
    model = tiny(seed=3)
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.25))
    before = values(model.trainable_variables)
    history = model.fit(pairs(), batch_size=8, shuffle=False, verbose=0).history
    after = values(model.trainable_variables)
    moved = sum(np.sum((a - b).astype("float64") ** 2) for a, b in zip(after, before, strict=True))
    assert np.sqrt(moved) == pytest.approx(0.25, rel=1e-4)
    assert history["gradient_norm"][0] > 1


@pytest.fixture(scope="module")
def exotic(tiny, pairs):
    """Everything at once: bfloat16, remat, dropout, both maskers, moving averages, validation."""
    tower = {"dtype": "mixed_bfloat16", "remat": "block", "dropout": 0.1, "drop_path": 0.1}
    model = tiny(
        image=tower, text=tower, text_masker="random", text_mask_ratio=0.5, dtype="mixed_bfloat16"
    )
    model.compile(flipkit.AdamW(1e-2, use_ema=True, ema_momentum=0.5), steps_per_execution=2)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            averages = values(self.model.optimizer._model_variables_moving_average)
            seen.append((values(self.model.trainable_variables), averages))
            with optimizers.averaged_weights(self.model):  # as an evaluation in between does
                self.model.predict({"text": pairs(4)["text"]}, verbose=0)

    def batches():
        for seed in range(100):
            yield (pairs(4, seed=seed),)

    history = model.fit(
        batches(),
        steps_per_epoch=4,
        epochs=2,
        validation_data=pairs(8),
        validation_batch_size=4,
        callbacks=Watch(),
        verbose=0,
    ).history
    return types.SimpleNamespace(model=model, history=history, seen=seen, batches=batches)


def test_bfloat16_trains_with_a_finite_loss(exotic):
    assert {v.dtype for v in exotic.model.trainable_variables} == {"float32"}
    assert np.isfinite(exotic.history["loss"]).all()
    assert {f"val_{name}" for name in LOGS - {"gradient_norm"}} <= exotic.history.keys()
    assert np.isfinite(exotic.history["val_loss"]).all()


def test_steps_that_run_together_are_counted_apart(exotic):
    assert int(exotic.model.step) == 8


def test_keras_own_list_of_callbacks_is_used_as_it_is(exotic):
    history = keras.callbacks.History()
    callbacks = keras.callbacks.CallbackList([history], model=exotic.model, epochs=1, steps=2)
    variables = [*exotic.model.variables, *exotic.model.optimizer.variables]
    before = values(variables)
    exotic.model.fit(exotic.batches(), steps_per_epoch=2, callbacks=callbacks)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    assert history.history.keys() == LOGS
    assert callbacks.callbacks == [history]


def test_averaged_weights_are_swapped_in_and_back(exotic):
    model = exotic.model
    weights, averages = exotic.seen[-1]
    assert not same(weights, averages)
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)  # `fit` leaves the averages
    with optimizers.averaged_weights(model) as found:
        assert found is model
        assert same(values(model.trainable_variables), averages)
    assert same(values(model.trainable_variables), weights)
    with pytest.raises(KeyError), optimizers.averaged_weights(model):
        raise KeyError
    assert same(values(model.trainable_variables), weights)


def test_without_averages_the_weights_stay(trained, plain):
    for model in (trained.model, plain):
        weights = values(model.trainable_variables)
        with optimizers.averaged_weights(model):
            assert same(values(model.trainable_variables), weights)


# Telling and saving ---------------------------------------------------------------------------


def test_the_summary_tells_kept_and_total(tiny):
    lines = []
    tiny(mask_ratio=0.75).summary(print_fn=lambda line, **kwargs: lines.append(line))
    assert "Training keeps 4 of 16 patches (mask ratio 0.75) and 6 of 6 text tokens." in lines
    assert any("image_projection" in line for line in lines)


def test_the_config_tells_everything(tiny):
    model = tiny(
        image={"image_size": (16, 8)},
        masker="random",
        mask_ratio=0.25,
        text_masker=maskers.RandomMasker(),
        text_mask_ratio=0.5,
        image_head="affine",
        text_head="affine",
        temperature=0.1,
        max_logit_scale=None,
        init_logit_bias=-10.0,
        preprocessing="clip",
        tokenizer="bytes",
        seed=4,
        dtype="mixed_bfloat16",
        name="clip",
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    assert json.loads(json.dumps(again.get_config())) == json.loads(json.dumps(model.get_config()))
    assert again.image.image_size == (16, 8)
    assert again.dtype_policy.name == "mixed_bfloat16"


def test_parts_may_be_named(tiny):
    model = flipkit.FLIP("vit", "text_transformer", masker="random", tokenizer="bytes", dim=8)
    assert type(model.image) is flipkit.ViT
    assert type(model.masker) is maskers.RandomMasker
    with pytest.raises(UnknownName, match="'vit'"):
        flipkit.FLIP("vitt", "text_transformer")


def test_a_missing_file_is_named():
    with pytest.raises(ConfigurationError, match=r"nowhere\.keras, which does not exist"):
        flipkit.load_model("nowhere.keras")


RELOAD = """
import json, pathlib, sys
import keras
import numpy as np
import flipkit

folder = pathlib.Path({folder!r})
batch = dict(np.load(folder / "batch.npz"))
model = flipkit.load_model(folder / "model.keras", compile=True)
found = model.predict(batch, verbose=0)
np.savez(folder / "found.npz", **found, caption=model.encode_texts(["a red circle"]))

weights = flipkit.FLIP.from_config({{**model.get_config(), "seed": 77}})
weights.build()
weights.load_weights(folder / "model.weights.h5")
np.savez(folder / "weights.npz", **weights.predict(batch, verbose=0))

history = model.fit(batch, batch_size=8, shuffle=False, verbose=0).history
after = {{str(i): v for i, v in enumerate(model.variables)}}
np.savez(folder / "after.npz", loss=history["loss"], **after)
"""


def test_a_saved_model_gives_the_same_and_trains_on_the_same_elsewhere(trained, fresh, tmp_path):
    model, batch = trained.model, trained.batch
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    np.savez(tmp_path / "batch.npz", **batch)
    expected = {**model.predict(batch, verbose=0), "caption": model.encode_texts(["a red circle"])}
    fresh(RELOAD.format(folder=str(tmp_path)))
    found = {
        name: dict(np.load(tmp_path / f"{name}.npz")) for name in ("found", "weights", "after")
    }
    assert_same(found["found"], expected)
    assert_same(found["weights"], {name: expected[name] for name in ("image", "text")})
    history = model.fit(batch, batch_size=8, shuffle=False, verbose=0).history
    assert found["after"].pop("loss")[0] == pytest.approx(history["loss"][0], rel=1e-6)
    after = {str(i): np.asarray(v) for i, v in enumerate(model.variables)}
    assert_same(found["after"], after, atol=1e-6)
    assert pathlib.Path(tmp_path / "model.keras").stat().st_size < 1_000_000


class Greedy(flipkit.Masker):
    """Keeps one patch more than it should."""

    def call(self, x, keep, *, grid, seed):
        return flipkit.maskers.keep_lowest(seed.uniform((x.shape[0], x.shape[1])), keep + 1)


def test_a_masker_that_keeps_another_number_is_refused_with_its_name(tiny, pairs):
    model = tiny(masker=Greedy(), mask_ratio=0.5)
    told = r"Expected Greedy to return int32 ids \(batch, 8\)\. Received: int32 \(8, 9\)"
    with pytest.raises(flipkit.ConfigurationError, match=told):
        model(pairs(), training=True)
