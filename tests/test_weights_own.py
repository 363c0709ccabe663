"""flipkit's own weights come back: presets, the workdirs of runs, and as the beginning of a run."""

import json

import h5py
import numpy as np
import pytest

import flipkit
from flipkit.errors import ConfigurationError, UnknownName
from flipkit.weights import initial

CAPTIONS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def trained(tiny):
    """A model with a vocabulary of its own, a step behind it, and an optimizer."""
    tokenizer = flipkit.WordPiece()
    tokenizer.train(CAPTIONS * 2, vocab=32)
    model = tiny(image={"positions": "learned"}, tokenizer=tokenizer)
    model.compile()
    model.step.assign(7)
    return model


@pytest.fixture(scope="module")
def describe(tiny):
    """Makes a run of 4 steps; keywords change it."""

    def make(model=None, **changes):
        towers = {"image": {"positions": "learned"}, "text": {"vocab": 259, "length": 8}}
        settings = {
            "data": flipkit.CaptionedShapes(size=16, image_size=32),
            "feed": flipkit.Feed(crop=None, flip=False, threads=1),
            "log_every": 1,
            "checkpoint_every": 1,
            "phases": [flipkit.Phase(32, 8, flipkit.Constant(1e-2))],
        }
        model = tiny(**{**towers, "tokenizer": "bytes", **(model or {})})
        return flipkit.Run(model, **{**settings, **changes})

    return make


@pytest.fixture(scope="module", autouse=True)
def no_picture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flipkit.records.drawing.pyplot", lambda: None)
        yield


@pytest.fixture(scope="module")
def finished(describe, tmp_path_factory):
    """A run's workdir and its model."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, describe().start(folder)


class Killed(Exception):
    """What stands for a kill within a process."""


def kill_at(step):
    def say(line):
        if line.startswith(f"step {step}"):
            raise Killed

    return say


def values(model):
    return {v.path: np.asarray(v) for v in model.variables}


def assert_equal(one, other):
    """Bit for bit, all variables."""
    found, expected = values(one), values(other)
    assert found.keys() == expected.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


# Presets ----------------------------------------------------------------------------------------

LOAD = """
import flipkit
import numpy as np

model = flipkit.FLIP.from_preset({folder!r})
np.savez({out!r}, **{{v.path: np.asarray(v) for v in model.variables}})
print(model.tokenizer(["two blue squares"], 6).tolist(), model.compiled)
"""


def test_preset_comes_back_bit_equal_in_another_process(trained, fresh, tmp_path):
    folder, out = tmp_path / "preset", tmp_path / "found.npz"
    trained.save_to_preset(folder)
    assert {"config.json", "model.weights.h5", "assets"} == {p.name for p in folder.iterdir()}
    told = fresh(LOAD.format(folder=str(folder), out=str(out)))
    assert told.strip() == f"{trained.tokenizer(['two blue squares'], 6).tolist()} False"
    found, expected = dict(np.load(out)), values(trained)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_preset_is_read_by_keras_too(trained, tiny, tmp_path):
    trained.save_to_preset(tmp_path / "preset")
    other = tiny(image={"positions": "learned"}, seed=3)
    other.build()
    other.load_weights(tmp_path / "preset" / "model.weights.h5")
    assert_equal(other, trained)


def test_from_preset_takes_what_load_pretrained_takes(trained, tmp_path):
    flipkit.save_as(trained, "keras", tmp_path / "model.keras")
    assert_equal(flipkit.FLIP.from_preset(tmp_path / "model.keras"), trained)
    larger = flipkit.FLIP.from_preset(tmp_path / "model.keras", image_size=32)
    assert larger.image.position.shape == (64, 16)
    with pytest.raises(UnknownName, match=r"Did you mean 'model\.keras'"):
        flipkit.FLIP.from_preset(tmp_path / "model.kera")


def test_preset_is_written_once(trained, tmp_path):
    trained.save_to_preset(tmp_path / "preset")
    with pytest.raises(ConfigurationError, match="exists"):
        trained.save_to_preset(tmp_path / "preset")


def test_preset_with_other_arrays_is_refused_listing_them(trained, tmp_path):
    trained.save_to_preset(tmp_path / "preset")
    with h5py.File(tmp_path / "preset" / "model.weights.h5", "r+") as file:
        del file["image_projection/vars/0"]
        file["image_projection/vars/0"] = np.zeros((3, 4), "float32")
        file["image/stray/vars/0"] = np.zeros(2, "float32")
        del file["layers/text_transformer/norm/vars/1"]
    with pytest.raises(ConfigurationError) as problem:
        flipkit.load_pretrained(tmp_path / "preset")
    told = str(problem.value)
    assert "missing: layers/text_transformer/norm/vars/1" in told
    assert "unexpected: image/stray/vars/0" in told
    assert "reshaped: image_projection/vars/0 is (3, 4), expected (16, 8)" in told


def test_preset_with_one_reshaped_array_is_refused(trained, tmp_path):
    trained.save_to_preset(tmp_path / "preset")
    with h5py.File(tmp_path / "preset" / "model.weights.h5", "r+") as file:
        del file["image_projection/vars/0"]
        file["image_projection/vars/0"] = np.zeros((8, 16), "float32")
    with pytest.raises(ConfigurationError, match=r"reshaped: image_projection/vars/0"):
        flipkit.load_pretrained(tmp_path / "preset")


@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_preset_with_truncated_or_missing_weights_is_refused(trained, tmp_path, share):
    trained.save_to_preset(tmp_path / "preset")
    file = tmp_path / "preset" / "model.weights.h5"
    if share is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ConfigurationError, match="missing, cut short or none"):
        flipkit.load_pretrained(tmp_path / "preset")


# Workdirs ---------------------------------------------------------------------------------------


def test_finished_run_is_read_from_its_workdir(finished):
    folder, model = finished
    assert_equal(flipkit.load_pretrained(folder), model)
    assert_equal(flipkit.load_pretrained(folder, "workdir"), model)


def test_unfinished_run_is_read_as_of_its_newest_checkpoint(describe, tmp_path):
    model = {"tokenizer": "wordpiece", "text": {"length": 8, "vocab": 60}}
    with pytest.raises(Killed):
        describe(model=model).start(tmp_path / "run", say=kill_at(3))
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    found = flipkit.load_pretrained(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before
    three_steps = [flipkit.Phase(24, 8, flipkit.Constant(1e-2))]  # saved before they are reported
    expected = describe(model=model, phases=three_steps).start(None)
    assert_equal(found, expected)
    assert found.tokenizer(CAPTIONS, 8).tolist() == expected.tokenizer(CAPTIONS, 8).tolist()


def test_unfinished_run_that_averages_gives_its_averages(describe, tmp_path):
    optimizer = flipkit.AdamW(use_ema=True, ema_momentum=0.5)
    finished = describe(optimizer=optimizer).start(tmp_path / "run")
    (tmp_path / "run" / "model.keras").unlink()
    assert_equal(flipkit.load_pretrained(tmp_path / "run"), finished)


def test_workdir_without_a_checkpoint_says_so(describe, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"run": describe().get_config()}))
    with pytest.raises(ConfigurationError, match="no checkpoint yet"):
        flipkit.load_pretrained(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="describes no model"):
        flipkit.load_pretrained(tmp_path)


# The beginning of a run -------------------------------------------------------------------------


def start_of(folder):
    return json.loads((folder / "start.json").read_text())["initial_weights"]


def test_run_begins_with_the_weights_of_another(describe, finished, tmp_path):
    folder, first = finished
    said = []
    rate = [flipkit.Phase(8, 8, flipkit.Constant(0.0))]  # which changes nothing
    run = describe(init=folder, phases=rate, seed=5)
    second = run.start(tmp_path / "second", say=said.append)
    for path, value in values(second).items():
        if path != "flip/step":
            np.testing.assert_array_equal(value, values(first)[path], err_msg=path)
    assert f"Weights from {folder}." in said
    assert not [line for line in said if line.startswith("Another setting")]
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["run"]["init"] == str(folder)
    assert start_of(tmp_path / "second") != start_of(folder)


def test_init_is_set_by_override_and_needed_only_at_the_start(describe, finished, tmp_path):
    _, first = finished
    flipkit.save_as(first, "keras", tmp_path / "model.keras")
    run = describe(seed=5).with_override("init", str(tmp_path / "model.keras"))
    with pytest.raises(Killed):
        run.start(tmp_path / "again", say=kill_at(3))
    (tmp_path / "model.keras").unlink()
    said = []
    assert int(run.start(tmp_path / "again", say=said.append).step) == 4
    assert "Resuming at step 3 of 4." in said
    assert not [line for line in said if line.startswith("Weights from")]


def test_learned_positions_are_resampled_to_the_grid_of_the_recipe(describe, tiny, tmp_path):
    settings = {"positions": "learned", "activation": "quick_gelu"}
    small = tiny(image=settings, text={"vocab": 259, "length": 8})
    flipkit.save_as(small, "keras", tmp_path / "model.keras")
    larger = {"image": {"positions": "learned", "image_size": 32}}
    rate = [flipkit.Phase(8, 8, flipkit.Constant(0.0))]
    said = []
    found = describe(
        model={**larger, "text": {"vocab": 259, "length": 8}},
        init=tmp_path / "model.keras",
        phases=rate,
        data=flipkit.CaptionedShapes(size=8, image_size=32),
    ).start(None, say=said.append)
    expected = flipkit.load_pretrained(tmp_path / "model.keras", image_size=32)
    assert found.image.position.shape == (64, 16)
    np.testing.assert_array_equal(found.image.position.numpy(), expected.image.position.numpy())
    told = [line for line in said if line.startswith("Another setting")]
    assert len(told) == 2  # the activation, and that there is no tokenizer
    assert "image.activation: 'quick_gelu' there, 'gelu_tanh' here" in told[0]


def test_weights_that_do_not_fit_are_refused_listing_paths(describe, tiny, tmp_path):
    tiny(text={"vocab": 259, "length": 8}).save_to_preset(tmp_path / "preset")
    with pytest.raises(ConfigurationError) as problem:
        describe(init=tmp_path / "preset", model={"dim": 4}).start(tmp_path / "run")
    told = str(problem.value)
    assert "missing: image/position" in told
    assert "reshaped: text_projection/kernel is (16, 8), expected (16, 4)" in told
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_init_that_is_nowhere_names_the_nearest(describe, tmp_path):
    (tmp_path / "model.keras").touch()
    with pytest.raises(UnknownName, match=r"Did you mean 'model\.keras'"):
        describe(init=tmp_path / "modl.keras").start(None)
    with pytest.raises(ConfigurationError, match="Expected a path"):
        describe(init=3)


def test_other_settings_of_the_same_shapes_are_found(tiny):
    here = tiny(image={"positions": "learned"})
    assert not initial.differing_settings(here, tiny(image={"positions": "learned", "mlp_dim": 64}))
    other = {"positions": "learned", "activation": "quick_gelu", "dropout": 0.1}
    there = tiny(image=other, text={"causal": True}, mask_ratio=0.0)
    assert initial.differing_settings(here, there) == [
        "image.activation: 'quick_gelu' there, 'gelu_tanh' here",
        "text.causal: True there, False here",
    ]


def test_untrained_tokenizer_takes_the_vocabulary_that_came_with_the_weights(tiny, trained):
    model = tiny(image={"positions": "learned"}, tokenizer=flipkit.WordPiece())
    initial.take_tokenizer(model, trained)
    assert model.tokenizer(CAPTIONS, 6).tolist() == trained.tokenizer(CAPTIONS, 6).tolist()
    other = tiny(tokenizer="bytes")
    initial.take_tokenizer(other, trained)
    assert other.tokenizer.vocab == flipkit.Bytes().vocab
