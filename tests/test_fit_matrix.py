"""`fit` with every kind of input, Keras's callbacks and every dtype policy: what each has to give.

One tiny model a policy, whose programs all cases share. The slow test goes through all combinations.
"""

import csv
import functools
import itertools

import grain
import keras
import numpy as np
import pytest

import flipkit
from flipkit.errors import ConfigurationError

BATCH, STEPS = 8, 2


@pytest.fixture(scope="module")
def data(pairs):
    return pairs(BATCH * STEPS)


def batches(data):
    for start in range(0, len(data["text"]), BATCH):
        yield {name: rows[start : start + BATCH] for name, rows in data.items()}


def rows(data):
    return [{name: x[i] for name, x in data.items()} for i in range(len(data["text"]))]


class Batches(keras.utils.PyDataset):
    def __init__(self, data, **options):
        super().__init__(**options)
        self.batches = list(batches(data))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


def tf_dataset(data):
    tensorflow = pytest.importorskip("tensorflow", reason="pip install flipkit[tf]")
    return tensorflow.data.Dataset.from_tensor_slices(data).batch(BATCH)


def torch_loader(data):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    return torch.utils.data.DataLoader(rows(data), batch_size=BATCH)


def grain_loader(data):
    sampler = grain.samplers.IndexSampler(len(data["text"]), num_epochs=1, shuffle=True, seed=0)
    operations = [grain.transforms.Batch(BATCH)]
    return grain.DataLoader(data_source=rows(data), sampler=sampler, operations=operations)


def grain_map(data):
    return grain.MapDataset.source(rows(data)).shuffle(seed=0).batch(BATCH)


def endless(data):
    return itertools.chain.from_iterable(batches(data) for _ in itertools.count())


def of_arrays(data):
    return {"x": data, "batch_size": BATCH, "validation_data": data}


def split(data):
    twice = {name: np.concatenate([x, x]) for name, x in data.items()}
    return {"x": twice, "batch_size": BATCH, "validation_split": 0.5}


def of_stream(make, data):
    """The same stream for training and judging."""
    return {"x": make(data), "validation_data": make(data)}


def of_iterator(data):
    steps = {"steps_per_epoch": STEPS, "validation_steps": STEPS}
    return {"x": endless(data), "validation_data": endless(data), **steps}


INPUTS = {  # name: data -> the arguments of fit
    "arrays": of_arrays,
    "validation_split": split,
    "py_dataset": functools.partial(of_stream, Batches),
    "py_dataset_workers": functools.partial(of_stream, functools.partial(Batches, workers=2)),
    "grain_map": functools.partial(of_stream, grain_map),
    "grain_iter": functools.partial(of_stream, lambda data: grain_map(data).to_iter_dataset()),
    "grain_loader": functools.partial(of_stream, grain_loader),
    "iterator": of_iterator,
    "tf_data": functools.partial(of_stream, tf_dataset),
    "torch_loader": functools.partial(of_stream, torch_loader),
}


# Callbacks: a context that gives the callback and then checks what it must have done.


def early_stopping(model, folder):
    found = keras.callbacks.EarlyStopping(
        "val_loss", min_delta=100, patience=0, restore_best_weights=True
    )
    yield found
    assert found.stopped_epoch == 1  # no epoch is better by 100
    assert found.best_epoch == 0
    for weight, best in zip(model.get_weights(), found.best_weights, strict=True):
        np.testing.assert_array_equal(weight, best)


def checkpoint(model, folder):
    path = folder / "best.keras"
    yield keras.callbacks.ModelCheckpoint(path)
    again = flipkit.load_model(path, compile=True)
    assert int(again.step) == int(model.step)
    assert_same(again, model)


def weights_checkpoint(model, folder):
    path = folder / "last.weights.h5"
    yield keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    again = type(model).from_config(model.get_config())
    again.load_weights(path)
    assert_same(again, model)


def reduced_rate(model, folder):
    model.optimizer.learning_rate = 1e-3
    yield keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=0, min_delta=100)
    assert float(model.optimizer.learning_rate) == pytest.approx(5e-4, rel=1e-2)


def csv_log(model, folder):
    path = folder / "log.csv"
    yield keras.callbacks.CSVLogger(path)
    logged = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["epoch"] for row in logged] == ["0", "1"]
    names = {"loss", "val_loss", "gradient_norm", "pairs_per_second", "val_logit_scale"}
    assert names <= logged[0].keys()
    assert float(logged[1]["val_loss"]) > 0


def tensorboard(model, folder):
    pytest.importorskip(
        "tensorboard", reason="TensorBoard is not installed: pip install tensorboard"
    )
    pytest.importorskip("tensorflow", reason="pip install flipkit[tf]")
    yield keras.callbacks.TensorBoard(folder)
    assert list(folder.glob("train/*.tfevents*.v2"))
    assert list(folder.glob("validation/*.tfevents*.v2"))


CALLBACKS = {
    "EarlyStopping": early_stopping,
    "ModelCheckpoint": checkpoint,
    "ModelCheckpoint of weights": weights_checkpoint,
    "ReduceLROnPlateau": reduced_rate,
    "CSVLogger": csv_log,
    "TensorBoard": tensorboard,
}

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")


def assert_same(found, expected):
    for a, b in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)


@pytest.fixture(scope="module")
def models(tiny):
    """{policy: a compiled model}, each made when it is first asked for, and compiled once."""

    @functools.cache
    def model(policy):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            made = tiny(image={"dtype": policy}, text={"dtype": policy}, seed=1)
        finally:
            keras.config.set_dtype_policy(before)
        made.compile(flipkit.AdamW(1e-3))
        return made

    return model


def check(models, data, folder, source, callback, policy):
    model = models(policy)
    given = INPUTS[source](data)
    watched = CALLBACKS[callback](model, folder)
    before = int(model.step)
    history = model.fit(**given, epochs=2, callbacks=[next(watched)], verbose=0).history
    assert next(watched, "done") == "done"
    epochs = len(history["loss"])
    assert epochs == 2
    # EarlyStopping gives back the weights, not the count of steps taken since.
    assert int(model.step) - before in (epochs * STEPS, (epochs - 1) * STEPS)
    for name in ("loss", "val_loss", "logit_scale", "image_to_text_accuracy"):
        assert np.isfinite(history[name]).all(), name
    assert ("skipped_steps" in history) == (policy == "mixed_float16")
    weights = {v.dtype for v in model.trainable_variables if v.path != "flip/logit_scale"}
    assert weights == {"bfloat16" if policy == "bfloat16" else "float32"}


CHOSEN = {
    "arrays": "EarlyStopping",
    "validation_split": "ModelCheckpoint",
    "py_dataset": "ModelCheckpoint of weights",
    "py_dataset_workers": "ReduceLROnPlateau",
    "grain_map": "CSVLogger",
    "grain_iter": "ReduceLROnPlateau",
    "grain_loader": "ModelCheckpoint",
    "iterator": "EarlyStopping",
    "torch_loader": "CSVLogger",
}


@pytest.mark.parametrize(("source", "callback"), CHOSEN.items())
def test_fit_does_what_was_asked(source, callback, models, data, tmp_path):
    check(models, data, tmp_path, source, callback, "float32")


def test_what_is_chosen_leaves_out_what_is_slow_to_import_or_compile():
    assert {*INPUTS} - {*CHOSEN} == {"tf_data"}
    assert {*CALLBACKS} - {*CHOSEN.values()} == {"TensorBoard"}


@pytest.mark.slow
@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("source", INPUTS)
def test_fit_does_what_was_asked_in_all_combinations(source, callback, models, data, tmp_path):
    for policy in POLICIES:
        folder = tmp_path / policy
        folder.mkdir()
        check(models, data, folder, source, callback, policy)


class Interruption(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_backup_after_each_epoch_goes_on_as_if_nothing_had_been(models, data, tmp_path):
    model = models("float32")
    variables = [*model.variables, *model.optimizer.variables]
    first = [np.array(variable) for variable in variables]

    def run(*callbacks):
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        options = {"batch_size": BATCH, "epochs": 3, "shuffle": False, "verbose": 0}
        model.fit(data, **options, callbacks=[backup, *callbacks])
        return [np.array(variable) for variable in variables]

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(Interruption())
    for found, value in zip(run(), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_a_backup_within_an_epoch_is_refused(models, data, tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
    with pytest.raises(ConfigurationError, match=r"first batch.*flipkit\.Run.*save_freq=1"):
        models("float32").fit(data, callbacks=[backup], verbose=0)
