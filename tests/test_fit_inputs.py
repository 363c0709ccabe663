"""What `fit` and its like refuse, by a sentence, before anything is compiled or trained on."""

import types

import jax.numpy as jnp
import keras
import numpy as np
import pytest

import flipkit
from flipkit.errors import DataError
from flipkit.models import inputs


@pytest.fixture(scope="module")
def model(tiny):
    made = tiny()
    made.compile("adam")
    return made


@pytest.fixture(scope="module")
def classifier(tiny):
    made = flipkit.Classifier(tiny().image, 4)
    made.compile("adam")
    return made


def changed(batch, **changes):
    return {**batch, **{name: change(batch[name]) for name, change in changes.items()}}


def generated(batch):
    yield batch


DIVIDED = r"image from 0 to 255.*from 0.*to 1\. They look divided by 255 already"
REFUSED = {  # name: (what is done to a batch, what the message contains)
    "divided": ({"image": lambda x: (x / 255).astype("float32")}, DIVIDED),
    "divided, on a device": ({"image": lambda x: jnp.asarray(x / 255, "bfloat16")}, DIVIDED),
    "normalised": ({"image": lambda x: x / 127.5 - 1}, "from -1 to 1. They look normalised"),
    "sixteen bits": (
        {"image": lambda x: x.astype("uint16") * 257},
        r"to 6\.\d+e\+04\. Give the uint8",
    ),
    "not finite": ({"image": lambda x: np.where(x > 9, x, np.nan)}, "numbers that are not finite"),
    "channels first": (
        {"image": lambda x: x.transpose(0, 3, 1, 2)},
        r"Move the axis of channels.*3, 16",
    ),
    "grey": ({"image": lambda x: x[..., 0]}, r"\(batch, height, width, 3\).*\(8, 16, 16\)"),
    "another size": ({"image": lambda x: x[:, :8]}, "pictures of 16 x 16 pixels. Received: 8 x 16"),
    "a list": ({"image": list}, "image as one array.*Received: list of 8"),
    "beyond the table": (
        {"text": lambda x: x + 400},
        r"text from 0 to 31: .* vocab is 32. Received: 43",
    ),
    "-100 as padding": ({"text": lambda x: np.where(x, x, -100)}, r"Received: -100\. Padding is 0"),
    "strings": ({"text": lambda x: ["a cat"] * 8}, r"model\.tokenizer\(texts.*list of 8 strings"),
    "an array of strings": ({"text": lambda x: np.array(["a cat"] * 8)}, r"makes ids of strings"),
    "fractions": ({"text": lambda x: x + 0.5}, "text as int32 ids. Received: text as float64"),
    "long texts": ({"text": lambda x: np.tile(x, 2)}, r"at most 6 ids a row.*\(8, 12\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_model_cannot_read_is_refused(case, model, pairs):
    changes, told = REFUSED[case]
    batch = changed(pairs(), **changes)
    for use in (model.fit, model.evaluate, model.train_on_batch, model.test_on_batch):
        with pytest.raises(DataError, match=told):
            use(batch)
    with pytest.raises(DataError, match=told):
        model.predict(batch)
    with pytest.raises(DataError, match=told):
        model.fit(pairs(), validation_data=batch)


@pytest.mark.parametrize("case", ["divided", "beyond the table", "another size"])
def test_a_stream_is_refused_at_its_first_batch_and_the_model_lives_on(case, model, pairs):
    changes, told = REFUSED[case]
    weights = [np.array(variable) for variable in model.variables]
    for use in (model.fit, model.evaluate, model.predict):
        with pytest.raises(DataError, match=told):
            use(generated(changed(pairs(), **changes)), verbose=0)
    for variable, value in zip(model.variables, weights, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_weights_and_targets_are_refused(model, classifier, pairs):
    batch = pairs()
    images, texts = batch["image"], batch["text"]
    labels = np.zeros(8, "int32")
    for name, value in (("sample_weight", np.zeros(8)), ("class_weight", {0: 1.0})):
        with pytest.raises(DataError, match=f"weighs all rows alike. Expected no {name}"):
            model.fit(batch, **{name: value})
    with pytest.raises(DataError, match="Expected no sample_weight"):
        model.fit(batch, validation_data=(batch, None, np.ones(8)))
    with pytest.raises(DataError, match="Expected no sample_weight"):
        model.evaluate(((batch, None, np.ones(8)) for _ in range(2)), verbose=0)
    for x in (images, [images, texts], (images, texts), None):
        with pytest.raises(
            DataError, match=r"Expected a dict, \{'image': \.\.\., 'text': \.\.\.\}"
        ):
            model.fit(x)
    for use in (model.fit, model.evaluate, model.train_on_batch, model.test_on_batch):
        with pytest.raises(DataError, match=r"Put both into the dict"):
            use(images, texts)
    with pytest.raises(DataError, match=r"\{'image': \.\.\., 'label': \.\.\.\}"):
        classifier.fit(images, labels)


def test_a_misspelt_name_is_answered_with_the_right_one(model, pairs):
    batch = pairs()
    with pytest.raises(DataError, match=r"'image' or 'patches'.*Did you mean 'images'\?"):
        model.fit({"images": batch["image"], "text": batch["text"]})
    with pytest.raises(DataError, match="with 'text'; the batch lacks it"):
        model.evaluate({"image": batch["image"]})


def test_what_is_no_batch_yet_is_told_how_to_become_one(model):
    for data in (flipkit.CaptionedShapes(size=8), types.SimpleNamespace(from_step=None)):
        with pytest.raises(DataError, match=r"from_step\(0\)"):
            model.fit(data)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.array([0, 4]), r"label from 0 to 3: the model has 4 classes\. Received: 4"),
        (np.array([-1, 1]), r"Received: -1\. Padding is 0, and nothing is left out"),
        (np.eye(4)[:2], r"label as int32 ids\. Received: label as float64 \(2, 4\)"),
        (np.array([[0], [1]]), r"shape \(batch,\)"),
        (np.array(["cat", "dog"]), "label as int32 ids"),
    ],
)
def test_labels_that_name_no_class_are_refused(classifier, labels, told):
    with pytest.raises(DataError, match=told):
        classifier.fit({"image": np.zeros((2, 16, 16, 3), "uint8"), "label": labels})


def test_a_classifier_refuses_pictures_of_another_size(classifier):
    other = {"image": np.zeros((2, 24, 24, 3), "uint8"), "label": np.zeros(2, "int32")}
    for use in (classifier.fit, classifier.evaluate, classifier.predict):
        with pytest.raises(DataError, match=r"16 x 16 pixels. Received: 24 x 24. Resize them"):
            use(other)


def test_a_tower_refuses_pictures_of_another_size_and_longer_texts(model):
    with pytest.raises(flipkit.ConfigurationError, match=r"16 x 16 pixels. Received: 18 x 24"):
        model.image(np.zeros((2, 18, 24, 3), "float32"))
    with pytest.raises(flipkit.ConfigurationError, match=r"at most 6 ids a text. Received: 9"):
        model.text(np.ones((2, 9), "int32"))


def test_whole_numbers_and_floats_up_to_255_are_pictures(model, pairs):
    check = inputs.Check(model.expected_inputs(True), model.needed_inputs("fit"))
    for dtype in ("float32", "int32", "int64", "float16"):
        check.arguments(changed(pairs(), image=lambda x, d=dtype: x.astype(d)))
    check.arguments(changed(pairs(), image=lambda x: 0 * x))


def test_only_the_first_batches_of_a_stream_are_looked_into(pairs, model):
    check = inputs.Check(model.expected_inputs(True), model.needed_inputs("fit"))
    dark = changed(pairs(), image=lambda x: np.zeros(x.shape, "float32"))
    light = changed(pairs(), image=lambda x: x.astype("float32"))
    with pytest.raises(DataError, match="divided"):
        check.batch(dark)
    for _ in range(inputs.FEW):
        check.batch((light,))
    check.batch((dark,))  # a dark batch among others
    with pytest.raises(DataError, match="Received: 432"):  # ids in host memory cost nothing
        check.batch(changed(light, text=lambda x: np.full_like(x, 432)))


def test_an_iterator_has_one_epoch(model, pairs):
    with pytest.raises(DataError, match=r"Expected steps_per_epoch.*generator and epochs=2"):
        model.fit(generated(pairs()), epochs=2)
    with pytest.raises(DataError, match=r"An iterator can be gone through once"):
        model.fit(pairs(), epochs=2, validation_data=iter([pairs()]))


def test_weights_are_loaded_into_a_model_that_was_never_built(tiny, tmp_path, model):
    model.save_weights(tmp_path / "model.weights.h5")
    again = tiny()
    again.load_weights(tmp_path / "model.weights.h5")
    for variable, value in zip(again.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_tensors_of_other_libraries_are_told_by_their_types():
    def tensor(dtype, **more):
        return types.SimpleNamespace(dtype=dtype, shape=(2, 6), **more)

    class Torch:
        def __str__(self):
            return "torch.float32"

    named = types.SimpleNamespace(name="string")
    told = inputs.Ids(5, "so", 6)
    with pytest.raises(DataError, match=r"text as int32 ids\. Received: text as float32"):
        told.check_form("text", tensor(Torch()))
    with pytest.raises(DataError, match="makes ids of strings"):
        told.check_form("text", tensor(named))
    told.check_form("text", tensor(types.SimpleNamespace(name="int64")))


def test_a_torch_loaders_dicts_become_tuples_and_the_loader_stays_as_it_was():
    """Keras takes the keys of a dict from there; test_fit_matrix has loaders, where torch is installed."""
    lists = {"dict": [{"image": 1}], "tuple": [({"image": 1}, 2)]}

    class Loader:
        __module__ = "torch.utils.data.dataloader"

        def __init__(self, batches):
            self.batches, self.collate_fn = batches, lambda batch: batch

        def __iter__(self):
            return iter([self.collate_fn(batch) for batch in self.batches])

    loaders = {name: Loader(batches) for name, batches in lists.items()}
    opened = {name: inputs.opened(loader) for name, loader in loaders.items()}
    for _ in range(2):  # epochs
        assert [*opened["dict"]] == [({"image": 1},)]
        assert [*opened["tuple"]] == lists["tuple"]
    assert [*loaders["dict"]] == lists["dict"]


# A gradient that was scaled ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_the_norm_is_that_of_the_loss_itself_however_it_was_scaled(kind, tiny, pairs):
    def norm(optimizer):
        made = tiny(seed=1)
        made.compile(optimizer)
        return made.fit(pairs(), batch_size=8, shuffle=False, verbose=0).history

    def plain(**options):
        return keras.optimizers.SGD(1e-9, **options)

    expected = norm(plain())
    scaled = plain(loss_scale_factor=1024.0)
    found = norm(scaled if kind == "fixed" else keras.optimizers.LossScaleOptimizer(plain()))
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)
    assert "skipped_steps" not in expected
    assert found.get("skipped_steps") == (None if kind == "fixed" else [0.0])


def test_steps_that_overflow_have_no_norm_and_are_told():
    from flipkit.models.metrics import of_gradients

    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    means = of_gradients(scaling)
    for value in (np.inf, 2.0, np.nan, 4.0):
        for mean in means.values():
            mean.update_state(np.float32(value))
    assert {name: float(mean.result()) for name, mean in means.items()} == {
        "gradient_norm": 3.0,
        "skipped_steps": 0.5,
    }
    for mean in means.values():
        mean.reset_state()
        mean.update_state(np.float32("inf"))
    assert np.isnan(float(means["gradient_norm"].result()))
    plain = of_gradients(keras.optimizers.SGD())
    assert plain.keys() == {"gradient_norm"}
    plain["gradient_norm"].update_state(np.float32("nan"))
    assert np.isnan(float(plain["gradient_norm"].result()))  # a run that diverged reports it


def test_what_is_not_finite_is_never_right():
    from flipkit.models.metrics import class_accuracy, pair_accuracies

    unit = np.eye(4, 8, dtype="float32")
    images = unit.copy()
    images[2:] = [[np.nan], [np.inf]]
    found = {name: np.mean(right) for name, right in pair_accuracies(images, unit, 1.0).items()}
    assert found["image_to_text_accuracy"] == 0.5
    assert found["text_to_image_accuracy"] == 0  # every text is compared with what is no number
    logits = np.float32([[np.nan, 0], [np.inf, 0], [1, 0], [0, 1]])
    right = class_accuracy(logits, np.float32([[1, 0]] * 4))["accuracy"]
    assert float(np.mean(right)) == 0.25


def test_options_of_a_wrapped_optimizer_are_seen(tiny):
    inner = flipkit.AdamW(1e-3, gradient_accumulation_steps=4)
    with pytest.raises(flipkit.ConfigurationError, match="does not enlarge a contrastive batch"):
        tiny().compile(keras.optimizers.LossScaleOptimizer(inner))
    inner = flipkit.AdamW(1e-3, no_decay=["image"])
    tiny(frozen=["image"]).compile(keras.optimizers.LossScaleOptimizer(inner))
    assert any(path.startswith("image/") for path in inner.frozen)
