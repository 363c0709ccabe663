"""The classifier against plain NumPy, and its runs: probes, fine-tuning, their records."""

import json

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit import evaluation, recipe
from flipkit.errors import ConfigurationError, DataError
from flipkit.random import Seed
from flipkit.records.journal import read_metrics


def tower(**changes):
    return flipkit.ViT(
        **{"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, **changes}
    )


def made(classes=4, image=None, **changes):
    model = flipkit.Classifier(tower(**(image or {})), classes, **{"seed": 3, **changes})
    model.build()
    return model


@pytest.fixture(scope="session")
def labelled():
    """Makes a batch: noise whose class is how bright it is."""

    def make(batch=8, classes=4, seed=0):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, batch).astype("int32")
        noise = rng.integers(0, 256 // classes, (batch, 16, 16, 3))
        image = noise + (256 // classes) * labels[:, None, None, None]
        return {"image": image.astype("uint8"), "label": labels}

    return make


def outputs(model, batch, training=False, step=0):
    others = [np.int32(step) if v is model.step else v.value for v in model.non_trainable_variables]
    weights = [v.value for v in model.trainable_variables]
    run = jax.jit(lambda w, o, b: model.stateless_call(w, o, b, training=training)[0])
    return {name: np.asarray(x) for name, x in run(weights, others, batch).items()}


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


# The forward pass -----------------------------------------------------------------------------


def test_logits_are_a_linear_map_of_the_towers_features(labelled, close):
    model, batch = made(), labelled()
    features = np.asarray(model.image(np.asarray(model.preprocessing.normalise(batch["image"]))))
    expected = features @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    found = outputs(model, batch)
    close(found["logits"], expected, ulps=64)
    np.testing.assert_array_equal(found["target"], np.eye(4)[batch["label"]])
    assert outputs(model, {"image": batch["image"]}).keys() == {"logits"}
    close(model.classify(batch["image"]), expected, ulps=64)
    assert model.classify([]).shape == (0, 4)


def test_the_loss_is_the_cross_entropy_with_smoothed_targets(labelled):
    model, batch = made(label_smoothing=0.2), labelled()
    found = outputs(model, batch, training=True)
    target = 0.8 * np.eye(4)[batch["label"]] + 0.05
    np.testing.assert_allclose(found["target"], target, rtol=1e-6)
    expected = -(target * log_softmax(found["logits"])).sum(1).mean()
    assert float(model.compute_loss(y_pred=found)) == pytest.approx(expected, rel=1e-5)
    plain = -log_softmax(outputs(model, batch)["logits"])[np.arange(8), batch["label"]].mean()
    model.compile()
    logs = model.evaluate(batch, batch_size=8, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(plain, rel=1e-5)
    right = outputs(model, batch)["logits"].argmax(1) == batch["label"]
    assert logs["accuracy"] == pytest.approx(right.mean())
    assert "gradient_norm" not in logs


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_tell_how_much_of_each_picture_is_there(alphas, close):
    """Of white and black pictures: what share of the pixels is white is the target."""
    model = made(classes=2, mixup=alphas[0], cutmix=alphas[1])
    x = np.repeat(np.float32([0, 1]), 2)[:, None, None, None] * np.ones((4, 16, 12, 3), "float32")
    target = np.eye(2, dtype="float32")[[0, 0, 1, 1]]
    kinds, shares = set(), []
    for step in range(40):
        mixed, told = map(np.asarray, model._mixed(x, target, Seed(1, step)))
        close(mixed.mean(axis=(1, 2, 3)), told[:, 1], ulps=64)
        close(told.sum(1), 1)
        boxed = np.isin(mixed, (0, 1)).all()
        kinds.add("cutmix" if boxed else "mixup")
        shares.append(told[0, 1])
        if boxed and 0 < told[0, 1] < 1:  # one box: all rows that have any of it are alike
            rows = mixed[0, :, :, 0][mixed[0, :, :, 0].any(1)]
            assert (rows == rows[0]).all()
    wanted = {name for name, alpha in zip(("mixup", "cutmix"), alphas, strict=True) if alpha}
    assert kinds == wanted
    assert np.std(shares) > 0.15
    assert min(shares) >= 0


def test_a_step_mixes_the_same_again_and_another_step_otherwise(labelled):
    model, batch = made(mixup=0.8, cutmix=1.0), labelled()
    first, again, later = (outputs(model, batch, True, step) for step in (0, 0, 1))
    np.testing.assert_array_equal(first["target"], again["target"])
    np.testing.assert_array_equal(first["logits"], again["logits"])
    assert (first["target"] != later["target"]).any()
    np.testing.assert_array_equal(outputs(model, batch)["target"], np.eye(4)[batch["label"]])


# Training -------------------------------------------------------------------------------------


def fitted(model, batch, epochs, rate=1e-2):
    before = {v.path: np.array(v) for v in model.variables}
    model.compile(flipkit.AdamW(rate, weight_decay=0.0))
    history = model.fit(batch, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history
    changed = {v.path for v in model.variables if (np.array(v) != before[v.path]).any()}
    return history, changed


def test_a_probe_trains_the_head_alone(labelled):
    model = made(tower="frozen", head_norm="batch", image={"drop_path": 0.5, "dropout": 0.5})
    history, changed = fitted(model, labelled(), 30)
    assert history["accuracy"][-1] == 1
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert {*history} >= {"gradient_norm", "pairs_per_second", "data_wait"}
    assert not [path for path in changed if "/image/" in path]
    names = {path.removeprefix("classifier/") for path in changed}
    norm = {"head_norm/moving_mean", "head_norm/moving_variance"}
    assert names == {"head/kernel", "head/bias", "step", *norm}
    assert int(model.step) == 30


def test_the_norm_of_a_probe_makes_features_alike_and_has_no_parameters(labelled, close):
    model, batch = made(tower="frozen", head_norm="batch"), labelled(batch=32)
    features = np.asarray(model.image(np.asarray(model.preprocessing.normalise(batch["image"]))))
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    expected = scaled @ np.asarray(model.head.kernel)
    # A feature of little spread is divided by it, and its rounding with it.
    close(outputs(model, batch, True)["logits"], expected, ulps=1024)
    assert [v.path for v in model.norm.trainable_variables] == []


def test_fine_tuning_trains_all(labelled):
    model = made(mixup=0.8, cutmix=1.0, label_smoothing=0.1, image={"drop_path": 0.1})
    _, changed = fitted(model, labelled(), 3)
    learned = {v.path for v in model.trainable_variables if not v.path.endswith("key/bias")}
    assert changed >= learned
    assert any("/image/block_00" in path for path in learned)


def test_a_saved_classifier_gives_the_same(labelled, tmp_path):
    model = made(tower="frozen", head_norm="batch", preprocessing="half")
    batch = labelled()
    fitted(model, batch, 2)
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras", compile=True)
    assert type(again) is flipkit.Classifier
    np.testing.assert_array_equal(outputs(again, batch)["logits"], outputs(model, batch)["logits"])
    assert again.get_config() == model.get_config()
    assert [v.path for v in again.trainable_variables] == [
        "classifier/head/kernel",
        "classifier/head/bias",
    ]
    a, b = (m.fit(batch, batch_size=8, shuffle=False, verbose=0).history for m in (model, again))
    assert a["loss"] == b["loss"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"classes": 1}, "at least 2 classes"),
        ({"tower": "frozn"}, "Did you mean 'frozen'"),
        ({"head_norm": "layer"}, "Known: None, batch"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"image": "vitt"}, "Did you mean 'vit'"),
    ],
)
def test_a_classifier_refuses_what_cant_be(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        flipkit.Classifier(**{"image": "vit", "classes": 4, **arguments})


def test_a_classifier_has_its_own_loss_and_needs_labels(labelled):
    model = made()
    with pytest.raises(ConfigurationError, match=r"loss of its own.*'contrastive'"):
        model.compile(loss="contrastive")
    with pytest.raises(ConfigurationError, match="lacks 'label'"):
        model.compute_loss(y_pred={"logits": np.zeros((2, 4))})


# Feeding --------------------------------------------------------------------------------------


@flipkit.registry.register
class Greys(flipkit.Dataset):
    """Grey pictures, whose class is how bright they are."""

    def __init__(self, size=24, classes=4, labelled=True):
        self.size, self.classes, self.labelled = size, classes, labelled

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        label = i % self.classes
        noise = np.random.default_rng(i).integers(0, 256 // self.classes, (20, 20, 3))
        sample = {"image": (noise + 256 // self.classes * label).astype("uint8"), "texts": ["grey"]}
        sample["id"] = f"greys:{i}"
        return {**sample, "label": label} if self.labelled else sample


def test_a_feed_gives_labels_to_a_classifier():
    feed, data = flipkit.Feed(crop=None, flip=False), Greys()
    batches = feed.open(data, made(), 8, seed=1)
    batch = batches.batch(0)
    assert batch.keys() == {"image", "label"}
    assert batch["label"].dtype == np.int32
    assert (batch["image"].mean(axis=(1, 2, 3)) // 64 == batch["label"]).all()
    stream = batches.from_step(0)
    ahead = next(stream)[0]
    stream.close()
    np.testing.assert_array_equal(ahead["label"], batch["label"])
    np.testing.assert_array_equal(ahead["image"], batch["image"])


def test_a_feed_refuses_labels_that_are_missing_or_too_large():
    feed = flipkit.Feed(crop=None, flip=False)
    with pytest.raises(DataError, match="no label"):
        feed.open(Greys(labelled=False), made(), 8).batch(0)
    with pytest.raises(DataError, match=r"labels from 0 to 1.*label=[23] of greys"):
        feed.open(Greys(), made(classes=2), 8).batch(0)


# Judging --------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_answers():
    model, data = made(), Greys(size=21)
    logits = model.classify([data[i]["image"] for i in range(21)])
    right = logits.argmax(1) == np.arange(21) % 4
    found = flipkit.Accuracy(data)(model)
    assert found == {"top1": pytest.approx(right.mean()), "top5": 1.0, "count": 21}


def test_evaluators_say_which_model_they_are_for(tiny):
    with pytest.raises(ConfigurationError, match=r"zero_shot\. Received: FLIP"):
        flipkit.Accuracy(Greys())(tiny())
    with pytest.raises(ConfigurationError, match=r"Received: Classifier.*'accuracy'"):
        evaluation.encode(made(), Greys())


# Runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tiny, tmp_path_factory):
    """A FLIP in a file."""
    model = tiny(text={"vocab": 259}, tokenizer="bytes", preprocessing="half", seed=7)
    model.build()
    path = tmp_path_factory.mktemp("pretrained") / "model.keras"
    model.save(path)
    return model, path


def describe(path, **changes):
    model = {"tower": "frozen", "head_norm": "batch", "preprocessing": "half"}
    settings = {
        "data": Greys(),
        "feed": flipkit.Feed(crop=None, flip=False, threads=1),
        "optimizer": flipkit.LARS(momentum=0.9),
        "evaluators": {"test": flipkit.Accuracy(Greys(12))},
        "log_every": 2,
        "checkpoint_every": 2,
        "init": str(path),
    }
    return flipkit.Run(
        flipkit.Classifier(tower(), 4, **{**model, **changes}),
        phases=[flipkit.Phase(48, 8, flipkit.WarmupCosine(1.0, warmup=8))],
        **settings,
    )


class Killed(Exception):
    pass


def test_a_run_begins_with_the_tower_of_a_flip_goes_on_and_keeps_records(
    pretrained, tmp_path, monkeypatch
):
    flip, path = pretrained
    monkeypatch.setattr("flipkit.records.drawing.pyplot", lambda: None)
    said = []
    model = describe(path).start(tmp_path / "whole", say=said.append)
    assert not any("Another setting" in line for line in said)
    for variable in model.image.variables:
        [source] = [
            v
            for v in flip.image.variables
            if v.path.removeprefix("flip/") == variable.path.removeprefix("classifier/")
        ]
        np.testing.assert_array_equal(np.asarray(variable), np.asarray(source))
    rows = read_metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"loss", "accuracy", "gradient_norm", "learning_rate", "rejected"} <= rows[0].keys()
    assert {"test/top1", "test/top5"} <= rows[-1].keys()
    assert any("accuracy" in line for line in said if line.startswith("step"))

    def stop(line):
        if line.startswith("step 4"):
            raise Killed

    with pytest.raises(Killed):
        describe(path).start(tmp_path / "again", say=stop)
    again = describe(path).start(tmp_path / "again")
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=one.path)
    loaded = flipkit.load_model(tmp_path / "whole" / "model.keras")
    data = Greys(12)
    assert flipkit.Accuracy(data)(loaded)["top1"] == rows[-1]["test/top1"]
    recorded = recipe.load(str(tmp_path / "whole" / "run.json"))()
    assert recorded.get_config() == describe(path, seed=0).get_config()


def test_a_run_of_a_classifier_refuses_what_it_has_not(pretrained):
    _, path = pretrained
    with pytest.raises(
        ConfigurationError, match=r"Classifier has no mask_ratio.*phases.0.mask_ratio=0.5"
    ):
        describe(path).with_override("phases.0.mask_ratio", 0.5)
    with pytest.raises(ConfigurationError, match="missing: image/block_01"):
        describe(path).with_override("model.image.depth", 2).start()


def test_a_described_flip_has_no_weights(pretrained):
    flip, path = pretrained
    found = flipkit.weights.describe(path)
    assert not found.built
    for name in ("image", "text", "preprocessing"):
        assert getattr(found, name).get_config() == getattr(flip, name).get_config()


def test_a_tiny_recipe_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr("flipkit.records.drawing.pyplot", lambda: None)
    run = recipe.make(recipe.load("linear_probe"), {"scale": "tiny", "test": "some-*.tar"})
    run.start(tmp_path)
    [row] = read_metrics(tmp_path)[-1:]
    assert row["step"] == 2
    assert {"accuracy", "test/top1"} <= row.keys()
    json.dumps(run.get_config())


def test_recipes_are_the_papers():
    probe = recipe.load("linear_probe")()
    assert type(probe.optimizer) is flipkit.LARS
    [phase] = probe.phases
    assert (phase.batch_size, phase.pairs) == (16_384, 90 * 1_281_167)
    assert phase.schedule.peak == pytest.approx(0.64)
    tune = recipe.load("fine_tune")()
    [phase] = tune.phases
    assert phase.schedule.peak == pytest.approx(2e-4)
    assert phase.schedule.warmup == 5 * 1_281_167
    assert tune.model.image.depth == 24
    assert tune.model.image.drop_path == 0.2
    assert tune.optimizer.rate_scale["image/block_23"] == 0.75
    assert tune.optimizer.rate_scale["image"] == 0.75**25
    for run in (probe, tune):
        assert run.model.classes == 1_000


def test_a_recipe_takes_tower_preprocessing_and_classes_from_files(pretrained, tmp_path):
    flip, path = pretrained
    (tmp_path / "names.txt").write_text("cats\ndogs\nbirds\n")
    settings = {"init": str(path), "names": str(tmp_path / "names.txt"), "label": "group"}
    for name in ("linear_probe", "fine_tune"):
        run = recipe.make(recipe.load(name), settings)
        assert run.model.classes == 3
        assert run.data.label_field == "group"
        assert run.model.image.dim == flip.image.dim
        assert run.model.preprocessing.mean == "half"
        assert run.init == str(path)


def test_keras_loads_a_classifier_by_its_config():
    model = flipkit.Classifier(tower(), 4, mixup=0.8)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == model.get_config()
