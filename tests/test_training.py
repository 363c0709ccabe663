"""Runs from start to end: their records, their phases, going on after a kill, running again."""

import dataclasses
import json
import math
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import flipkit
from flipkit import recipe
from flipkit.errors import ConfigurationError, DataError, FlipkitError
from flipkit.maskers import kept_count
from flipkit.records import messages
from flipkit.records.journal import fingerprint, read_metrics
from flipkit.training import loop, train_tokenizer

TIMES = ("seconds", "pairs_per_second", "data_wait")


@flipkit.registry.register
class SomeBad(flipkit.CaptionedShapes):
    """Captioned shapes of which some can't be used."""

    def __init__(self, size=64, every=5, textless=False):
        super().__init__("train", size, 32)
        self.every, self.textless = every, textless

    def __getitem__(self, i):
        if i % self.every == 3:
            raise flipkit.BadSample(f"{i} is bad")
        return super().__getitem__(i)

    def texts(self, i):
        if i % self.every == 3:
            raise flipkit.BadSample(f"{i} has no text")
        return super().texts(i)


@pytest.fixture(scope="session")
def describe(tiny):
    """Makes a run of 6 steps; keywords change it."""

    def make(phases=None, model=None, **changes):
        towers = {"image": {"dropout": 0.1}, "text": {"vocab": 259, "length": 8}}
        settings = {
            "data": flipkit.CaptionedShapes(size=24, image_size=32),
            "feed": flipkit.Feed(crop=(0.5, 1), threads=1),
            "optimizer": flipkit.AdamW(no_decay=["bias", "position"]),
            "log_every": 2,
            "checkpoint_every": 2,
        }
        return flipkit.Run(
            tiny(**{**towers, "tokenizer": "bytes", **(model or {})}),
            phases=phases or [flipkit.Phase(48, 8, flipkit.WarmupCosine(1e-2, warmup=8))],
            **{**settings, **changes},
        )

    return make


class Killed(Exception):
    """What stands for a kill within a process."""


@dataclasses.dataclass
class Outcome:
    """What a run said and left."""

    folder: pathlib.Path
    said: list
    model: object = None

    @property
    def rows(self):
        """The metrics without what depends on the clock."""
        found = read_metrics(self.folder)
        return [{k: v for k, v in row.items() if k not in TIMES} for row in found]

    @property
    def start(self):
        return json.loads((self.folder / "start.json").read_text())


def start(run, folder, until=None, picture=False):
    """Runs it. `until` is how many windows it lives to record, each after its checkpoint."""
    outcome = Outcome(folder, [])

    def say(line):
        outcome.said.append(line)
        if until is not None and sum(said.startswith("step") for said in outcome.said) >= until:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr(
                "flipkit.records.drawing.pyplot", lambda: None
            )  # takes as long as the training
        if until is None:
            outcome.model = run.start(folder, say=say)
        else:
            with pytest.raises(Killed):
                run.start(folder, say=say)
    return outcome


def assert_equal(a, b):
    """Bit for bit: the weights and the step."""
    for one, other in zip(a.variables, b.variables, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=one.path)


def assert_same(a, b):
    """Two finished runs end in the same weights, by the same metrics."""
    assert a.rows == b.rows
    assert_equal(a.model, b.model)


@pytest.fixture(scope="module")
def finished(describe, tmp_path_factory):
    """A finished run."""
    return start(describe(), tmp_path_factory.mktemp("finished"), picture=True)


# Descriptions


def test_phase_uses_whole_batches():
    phase = flipkit.Phase(pairs=20, batch_size=8)
    assert (phase.steps, phase.samples) == (2, 16)
    assert flipkit.Phase(1e3, 1e1).pairs == 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pairs": 0}, "pairs=0"),
        ({"pairs": 1.5}, "pairs=1.5"),
        ({"pairs": "many"}, "pairs='many'"),
        ({"batch_size": -8}, "batch_size=-8"),
        ({"pairs": 7}, "at least one batch. Received: pairs=7, batch_size=8"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"mask_ratio": "half"}, "mask_ratio='half'"),
        ({"text_mask_ratio": -0.5}, "text_mask_ratio=-0.5"),
        ({"optimizer": "new"}, "optimizer='new'"),
        ({"schedule": "warmup_cosin"}, "Did you mean 'warmup_cosine'"),
        ({"schedule": 3}, "schedules"),
    ],
)
def test_phase_refuses_what_cant_be(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        flipkit.Phase(**{"pairs": 16, "batch_size": 8, **arguments})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"phases": ()}, "at least one phase"),
        ({"phases": [3]}, "Expected a Phase. Received: phases=3"),
        ({"model": "flop"}, "None of the models is called 'flop'"),
        ({"data": "captioned_shape"}, "Did you mean 'captioned_shapes'"),
        ({"data": 3}, "datasets"),
        ({"optimizer": "adamww"}, "Did you mean 'adamw'"),
        ({"loss": "contrast"}, "Did you mean 'contrastive'"),
        ({"distribution": "data_paralel"}, "Did you mean 'data_parallel'"),
        ({"log_every": 0}, "log_every=0"),
        ({"evaluate_every": -1}, "evaluate_every=-1"),
    ],
)
def test_run_refuses_what_cant_be(tiny, arguments, told):
    arguments = {"model": tiny(tokenizer="bytes"), "phases": [flipkit.Phase(8, 8)], **arguments}
    with pytest.raises(FlipkitError, match=told):
        flipkit.Run(**arguments)


def test_run_comes_back_from_its_config(describe):
    run = describe(
        evaluators={"choice": flipkit.CaptionChoice(flipkit.CaptionedShapes("attributes"))}
    )
    config = json.loads(json.dumps(run.get_config()))
    assert flipkit.Run.from_config(config).get_config() == run.get_config()
    assert run.steps == 6


def test_run_without_data_says_what_to_set(describe):
    with pytest.raises(ConfigurationError, match=r"set data\.path=.*or data=captioned_shapes"):
        describe(data=None).start()


def test_warm_up_longer_than_the_phase_is_refused(describe):
    phase = flipkit.Phase(16, 8, flipkit.WarmupCosine(1e-3, warmup=16))
    with pytest.raises(ConfigurationError, match="warm-up shorter than the phase"):
        describe([phase]).start()


# One run


def test_finished_run_leaves_its_records(finished):
    left = {path.name for path in finished.folder.iterdir()}
    assert {"run.json", "start.json", "metrics.jsonl", "checkpoints", "model.keras"} <= left
    assert not [name for name in left if "part" in name]
    record = json.loads((finished.folder / "run.json").read_text())
    assert {"flipkit", "keras", "jax", "grain"} <= record["versions"].keys()
    assert "plugins" in record


def test_picture_and_tensorboard_records_are_left_where_their_packages_are(finished):
    pytest.importorskip("matplotlib")
    assert (finished.folder / "summary.png").read_bytes().startswith(b"\x89PNG")
    pytest.importorskip("tensorboardX")
    assert [*(finished.folder / "tensorboard").iterdir()]


def test_metrics_tell_the_run_window_by_window(finished):
    found = read_metrics(finished.folder)
    assert [row["step"] for row in found] == [2, 4, 6]
    assert [row["samples"] for row in found] == [16, 32, 48]
    wanted = "phase loss image_to_text_accuracy text_to_image_accuracy logit_scale gradient_norm"
    wanted += " learning_rate pairs_per_second data_wait seconds rejected"
    assert all({*wanted.split()} <= row.keys() for row in found)
    assert all(math.isfinite(row[name]) for row in found for name in wanted.split())
    assert [row["seconds"] for row in found] == sorted(row["seconds"] for row in found)


def test_learning_rate_follows_the_schedule_and_ends_at_zero(finished):
    rates = [row["learning_rate"] for row in finished.rows]
    wave = [(1 + math.cos(math.pi * (samples - 8) / 40)) / 2 for samples in (16, 32, 48)]
    assert rates == pytest.approx([1e-2 * height for height in wave], abs=1e-8)
    assert rates[-1] == 0


def test_run_tells_what_it_does(finished):
    assert "Starting at step 0." in finished.said
    assert sum(line.startswith("step") for line in finished.said) == 3
    assert any(line.startswith("Done: 48 pairs") for line in finished.said)
    assert "model.keras" in finished.said[-1]


def test_model_of_the_file_is_the_model_that_was_trained(finished):
    model = flipkit.load_model(finished.folder / "model.keras")
    assert_equal(model, finished.model)
    assert model.encode_texts(["a red circle"]).shape == (1, 8)
    assert model.encode_images([np.zeros((20, 30, 3), "uint8")]).shape == (1, 8)


# Again


def test_same_command_again_says_that_it_is_done(describe, finished):
    again = start(describe(), finished.folder)
    assert "Resuming at step 6 of 6." in again.said
    assert not any(line.startswith("step") for line in again.said)
    assert [row["step"] for row in again.rows] == [2, 4, 6]
    assert_same(again, finished)


def test_interrupted_run_goes_on_to_the_same_weights(describe, finished, tmp_path):
    start(describe(checkpoint_every=4), tmp_path, until=1)  # a window that no checkpoint holds
    start(describe(), tmp_path, until=1)
    again = start(describe(), tmp_path)
    assert "Resuming at step 2 of 6." in again.said
    assert_same(again, finished)


def test_run_goes_on_with_other_intervals(describe, finished, tmp_path):
    start(describe(), tmp_path, until=2)
    again = start(describe(log_every=3, checkpoint_every=0), tmp_path)
    assert_equal(again.model, finished.model)


def test_killed_process_goes_on_from_its_last_checkpoint(finished, tmp_path):
    """The run of `describe`, as a recipe; killed while the checkpoint of step 4 is being written."""
    path = tmp_path / "killed.py"
    path.write_text("""
import flipkit

def recipe():
    towers = {"dim": 16, "depth": 1, "heads": 2}
    image = flipkit.ViT(image_size=16, patch_size=4, dropout=0.1, **towers)
    text = flipkit.TextTransformer(vocab=259, length=8, **towers)
    return flipkit.Run(
        flipkit.FLIP(image, text, dim=8, tokenizer="bytes"),
        data=flipkit.CaptionedShapes(size=24, image_size=32),
        feed=flipkit.Feed(crop=(0.5, 1), threads=1),
        optimizer=flipkit.AdamW(no_decay=["bias", "position"]),
        phases=[flipkit.Phase(48, 8, flipkit.WarmupCosine(1e-2, warmup=8))],
        log_every=2,
        checkpoint_every=2,
    )
""")
    code = """
import os, pathlib, signal, sys
from flipkit import recipe
from flipkit.records import checkpoints
save = checkpoints.Checkpoints.save

def save_and_die(self, step, *args):
    self._manager.wait_until_finished()
    save(self, step, *args)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.Checkpoints.save = save_and_die
recipe.load(sys.argv[1])().start(pathlib.Path(sys.argv[2]))
"""
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = start(recipe.load(str(path))(), tmp_path / "run")
    assert {"Resuming at step 2 of 6.", "Resuming at step 4 of 6."} & {*again.said}
    assert_same(again, finished)


def test_run_from_its_record_has_the_same_weights_and_losses(finished, tmp_path):
    again = start(recipe.load(str(finished.folder / "run.json"))(), tmp_path)
    assert again.start == finished.start
    assert_same(again, finished)


def test_workdir_of_another_run_is_refused_naming_what_differs(describe, finished):
    run = describe(seed=1).with_override("model.mask_ratio", 0.75).with_override("data.size", 30)
    with pytest.raises(ConfigurationError, match="holds another run") as problem:
        run.start(finished.folder)
    told = str(problem.value)
    assert "seed: 0 there, 1 here" in told
    assert "model.mask_ratio: 0.5 there, 0.75 here" in told
    assert "data.size: 24 there, 30 here" in told
    assert "--workdir" in told
    assert len(finished.rows) == 3


def test_workdir_of_a_run_that_never_began_is_free(describe, finished, tmp_path):
    words = describe([flipkit.Phase(8, 8)], model={"tokenizer": "wordpiece"})
    with pytest.raises(DataError, match="batch_size=8 and 4 samples"):
        words.with_override("data.size", 4).start(tmp_path)
    assert (tmp_path / "tokenizer").exists()
    assert_same(start(describe(), tmp_path), finished)


def test_start_is_a_function_of_the_seed_alone(describe, finished):
    """Not of the mask, which the paper's comparison depends on, nor of a change by path."""

    def begun(run):
        with loop.anew(run) as made:
            made.model.build()
            return fingerprint(made.model.trainable_variables)

    assert begun(describe(model={"mask_ratio": 0.0})) == finished.start["initial_weights"]
    unmasked = describe().with_override("model.masker", None).with_override("phases.0.pairs", 80)
    assert begun(unmasked) == finished.start["initial_weights"]
    assert begun(describe(seed=1)) != finished.start["initial_weights"]


# Phases


@pytest.fixture(scope="module")
def two_phases(describe, tmp_path_factory):
    """Runs with unmasked tuning, and their phases, by what becomes of the optimizer."""
    made = {}
    for optimizer in ("kept", "fresh"):
        schedules = (flipkit.WarmupCosine(1e-2), flipkit.WarmupCosine(1e-3, warmup=8))
        phases = [
            flipkit.Phase(32, 8, schedules[0], mask_ratio=0.5),
            flipkit.Phase(32, 8, schedules[1], mask_ratio=0.0, optimizer=optimizer),
        ]
        made[optimizer] = phases, start(describe(phases), tmp_path_factory.mktemp(optimizer))
    return made


@pytest.mark.parametrize("optimizer", ["kept", "fresh"])
def test_second_phase_goes_on_under_its_own_schedule(two_phases, optimizer):
    found = two_phases[optimizer][1].rows
    assert [row["phase"] for row in found] == [0, 0, 1, 1]
    assert [row["step"] for row in found] == [2, 4, 6, 8]
    assert [row["samples"] for row in found] == [16, 32, 48, 64]
    peak = 1e-3 * (1 + math.cos(math.pi / 3)) / 2  # a third of the way down
    assert [row["learning_rate"] for row in found] == pytest.approx([5e-3, 0, peak, 0], abs=1e-8)


def test_fresh_optimizer_forgets_and_a_kept_one_does_not(two_phases):
    kept, fresh = (two_phases[name][1].rows for name in ("kept", "fresh"))
    assert kept[:2] == fresh[:2]
    assert kept[3]["loss"] != fresh[3]["loss"]


@pytest.mark.parametrize("optimizer", ["kept", pytest.param("fresh", marks=pytest.mark.slow)])
def test_run_goes_on_within_a_later_phase(describe, two_phases, tmp_path, optimizer):
    phases, whole = two_phases[optimizer]
    start(describe(phases), tmp_path, until=3)
    again = start(describe(phases), tmp_path)
    assert "Resuming at step 6 of 8." in again.said
    assert_same(again, whole)


def test_phase_without_a_schedule_takes_the_optimizers_own_rate(describe, tmp_path):
    """Keras's optimizers train too."""
    phases = [flipkit.Phase(8, 8, flipkit.WarmupCosine(1e-2)), flipkit.Phase(8, 8)]
    run = describe(phases, optimizer=keras.optimizers.SGD(0.25, momentum=0.5), log_every=1)
    start(run, tmp_path, until=1)
    assert [row["learning_rate"] for row in start(run, tmp_path).rows] == [0, 0.25]


# What a run may hold


def test_bad_samples_are_recorded_across_an_interruption(describe, tmp_path):
    run = describe(data=SomeBad(), feed=flipkit.Feed(bad_limit=1, threads=1))
    batches = run.feed.open(run.data, run.model, 8)
    for step in range(6):
        batches.batch(step)
    start(run, tmp_path, until=2)
    again = start(run, tmp_path)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [tuple(reject.values()) for reject in rejects] == batches.rejects
    assert len(rejects) >= 4
    assert again.rows[-1]["rejected"] == len(rejects)


def test_too_many_bad_samples_stop_a_run_with_a_summary(describe, tmp_path):
    with pytest.raises(DataError, match=r"more than the 1\.0%"):
        describe(data=SomeBad()).start(tmp_path)
    assert (tmp_path / "rejects.jsonl").exists()


def test_tokenizer_learns_from_the_captions_leaving_out_bad_samples_and_is_kept(tiny, tmp_path):
    model, again = (tiny(text={"vocab": 80}, tokenizer="wordpiece") for _ in range(2))
    train_tokenizer(model, SomeBad(), tmp_path / "tokenizer")
    assert 30 < model.tokenizer.vocab <= 80
    train_tokenizer(again, flipkit.CaptionedShapes("attributes", size=3), tmp_path / "tokenizer")
    assert again.tokenizer.lines == model.tokenizer.lines


def test_evaluators_run_at_their_steps_and_leave_the_training_alone(describe, finished, tmp_path):
    data = flipkit.CaptionedShapes("attributes", size=4, image_size=32)
    run = describe(evaluators={"choice": flipkit.CaptionChoice(data)}, evaluate_every=4)
    start(run, tmp_path, until=1)
    again = start(run, tmp_path)
    assert ["choice/accuracy" in row for row in again.rows] == [False, True, True]
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in finished.rows]
    assert_equal(again.model, finished.model)


@flipkit.registry.register
class Fails(flipkit.registry.Configurable):
    """An evaluator that works a given number of times, and then fails."""

    works = 0

    def __init__(self, refuses=False):
        self.refuses = refuses

    def check(self, model):
        if self.refuses:
            raise ConfigurationError("never in the world")

    def __call__(self, model):
        if Fails.works == 0:
            raise DataError("the disc is full")
        Fails.works -= 1
        return {"top1": float(np.abs(model.encode_texts(["a circle"])).sum()), "big": math.inf}


def test_a_checkpoint_is_saved_before_an_evaluation_fails_and_what_it_owes_is_made_good(
    describe, tmp_path, monkeypatch
):
    """At a step within a phase and at the end of all; with bad samples in the window."""
    run = describe(
        data=SomeBad(),
        feed=flipkit.Feed(bad_limit=1, threads=1),
        evaluators={"disc": Fails()},
        evaluate_every=4,
    )
    monkeypatch.setattr(Fails, "works", 2)
    whole = start(run, tmp_path / "whole")
    assert [math.isnan(row.get("disc/big", 0)) for row in whole.rows] == [False, True, True]
    for begins in ("Starting at step 0.", "Resuming at step 4 of 6."):
        monkeypatch.setattr(Fails, "works", int(begins.startswith("Resuming")))
        with pytest.raises(DataError, match="Evaluator 'disc': the disc is full"):
            run.start(tmp_path / "cut")
    monkeypatch.setattr(Fails, "works", 1)
    again = start(run, tmp_path / "cut")
    assert "Resuming at step 6 of 6." in again.said
    assert sum(line.startswith("step 6/6") for line in again.said) == 1
    assert json.dumps(again.rows) == json.dumps(whole.rows)  # NaN is equal to itself there
    assert_equal(again.model, whole.model)
    rejects = [(tmp_path / name / "rejects.jsonl").read_text() for name in ("cut", "whole")]
    assert rejects[0] == rejects[1]


def test_what_an_evaluator_will_refuse_is_refused_before_there_are_weights(describe, monkeypatch):
    monkeypatch.setattr(flipkit.FLIP, "build", lambda *_: pytest.fail("weights are made"))
    for evaluator, told in (
        (Fails(refuses=True), "Evaluator 'late': never in the world"),
        (flipkit.ZeroShot("captioned_shapes", templates=["a shape"]), "one place for the class"),
        (flipkit.Retrieval("nowhere/test-*.tar"), "No file matches"),
    ):
        with pytest.raises(FlipkitError, match=told):
            describe(evaluators={"late": evaluator}).start()


@pytest.mark.slow  # test_weights_own reads the averages of a run
def test_averaged_weights_are_what_a_run_leaves(describe, two_phases, tmp_path):
    """The weights themselves are trained on, in both phases and after a stop between them."""
    phases, plain = two_phases["kept"]
    optimizer = flipkit.AdamW(no_decay=["bias", "position"], use_ema=True, ema_momentum=0.5)
    data = flipkit.CaptionedShapes("attributes", size=4, image_size=32)
    evaluators = {"choice": flipkit.CaptionChoice(data)}
    run = describe(phases, optimizer=optimizer, evaluators=evaluators, evaluate_every=2)
    start(run, tmp_path, until=2)
    again = start(run, tmp_path)
    losses, expected = ([row["loss"] for row in run.rows] for run in (again, plain))
    assert losses == pytest.approx(expected, rel=1e-5)  # two programs, whose sums differ in order
    averages = again.model.optimizer._model_variables_moving_average
    for variable, average in zip(again.model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), np.asarray(average))
    assert_equal(flipkit.load_model(tmp_path / "model.keras"), again.model)
    kernels = [np.asarray(m.image_projection.kernel) for m in (again.model, plain.model)]
    assert not np.array_equal(*kernels)


def test_gradient_accumulation_is_refused(describe):
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=2)
    with pytest.raises(ConfigurationError, match="does not enlarge a contrastive batch"):
        describe(optimizer=optimizer).start()


@pytest.mark.slow  # test_fit has eight devices beside one
def test_eight_devices_train_alike_twice(fresh):
    """With dropout and AdamW; the same weights at the start as on one device."""
    printed = fresh(
        """
import json, tempfile, jax, flipkit
from flipkit.records.journal import read_metrics

def describe(distribution):
    towers = {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.1}
    image = flipkit.ViT(image_size=16, patch_size=4, **towers)
    text = flipkit.TextTransformer(vocab=259, length=8, **towers)
    return flipkit.Run(
        flipkit.FLIP(image, text, dim=8, tokenizer="bytes"),
        data=flipkit.CaptionedShapes(size=24, image_size=32),
        feed=flipkit.Feed(crop=(0.5, 1), threads=1),
        optimizer=flipkit.AdamW(no_decay=["bias", "position"]),
        phases=[flipkit.Phase(32, 16, flipkit.WarmupCosine(1e-2))],
        distribution=distribution,
        log_every=1,
    )

assert jax.device_count() == 8
told = []
for distribution in ("data_parallel", "data_parallel", None):
    with tempfile.TemporaryDirectory() as folder:
        model = describe(distribution).start(folder)
        begun = json.load(open(f"{folder}/start.json"))
        told.append([begun, [row["loss"] for row in read_metrics(folder)]])
    devices = len(model.logit_scale.value.sharding.device_set)
    assert devices == (8 if distribution else 1), devices
print(json.dumps(told))
""",
        devices=8,
    )
    first, second, single = json.loads(printed.splitlines()[-1])
    assert first == second
    assert first[0] == single[0]
    assert first[1] == pytest.approx(single[1], rel=1e-5)


@pytest.mark.slow
def test_plugins_component_is_found_again_from_the_record(fresh, tmp_path):
    """In a process that has not imported the plugin."""
    (tmp_path / "flipkit_far.py").write_text("""
import flipkit
import keras

@keras.saving.register_keras_serializable(package="flipkit_far")
class Far(flipkit.RandomMasker):
    "Keeps what random keeps."

@flipkit.hookimpl
def flipkit_maskers():
    return {"far": Far}
""")
    info = tmp_path / "flipkit_far-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: flipkit-far\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flipkit]\nfar = flipkit_far\n")
    begin = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    path = str(tmp_path / "run.json")
    fresh(
        begin
        + f"""
import json
from flipkit import recipe
from flipkit.records import drawing
run = recipe.load("flip_shapes")().with_override("model.masker", "far")
json.dump(run.record(), open({path!r}, "w"))
"""
    )
    printed = fresh(
        begin
        + f"""
from flipkit import recipe
from flipkit.records import drawing
print(type(recipe.load({path!r})().model.masker).__name__)
"""
    )
    assert printed.strip() == "Far"


def test_other_backend_is_refused_in_one_line(describe, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ConfigurationError, match=r"JAX backend.*'tensorflow'.*KERAS_BACKEND=jax"):
        describe().start()


def test_throughput_is_measured_without_leaving_anything(describe):
    shares = []
    assert describe().throughput(seconds=0.1, pause=shares.append) > 0
    assert shares[0] == 0  # when the program is compiled
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_a_run_pauses_when_its_program_is_compiled_and_after_each_window(describe):
    steps = []
    describe().start(pause=steps.append)
    assert steps == [1, 2, 4, 6]


def test_reading_metrics_leaves_out_a_line_cut_by_a_kill(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4, "lo')
    assert read_metrics(tmp_path) == [{"step": 2}]


# Phases of other sizes and ratios -------------------------------------------------------------


def test_a_phase_of_smaller_pictures_is_the_other_way_to_fewer_tokens(describe, tmp_path):
    """RECLIP and CLIPA: half the side at first, the tower's own size at the end."""
    rate = flipkit.WarmupCosine(1e-2)
    phases = [
        flipkit.Phase(24, 8, rate, image_size=8, mask_ratio=0.0),
        flipkit.Phase(16, 8, rate, image_size=16, mask_ratio=0.5),
    ]
    seen = []
    run = describe(phases=phases)
    with pytest.MonkeyPatch.context() as patch:
        call = flipkit.FLIP._grid_of

        def watched(model, x, training):
            grid = call(model, x, training)
            seen.append((tuple(x.shape[1:3]), grid)) if training else None
            return grid

        patch.setattr(flipkit.FLIP, "_grid_of", watched)
        outcome = start(run, tmp_path / "run")
    assert {((8, 8), (2, 2)), ((16, 16), (4, 4))} == {*seen}
    assert outcome.model.image_size == 16
    assert [row["samples"] for row in outcome.rows][-1] == 40


@pytest.mark.slow  # going on within a later phase has a test of its own
@pytest.mark.parametrize("until", [1, 3])
def test_a_run_over_sizes_goes_on_after_a_kill_as_if_nothing_had_been(describe, tmp_path, until):
    rate = flipkit.WarmupCosine(1e-2)
    phases = [flipkit.Phase(32, 8, rate, image_size=8), flipkit.Phase(32, 8, rate, image_size=16)]
    whole = start(describe(phases=phases), tmp_path / "whole")
    start(describe(phases=phases), tmp_path / "cut", until=until)
    assert_same(start(describe(phases=phases), tmp_path / "cut"), whole)


def test_a_phase_of_a_size_that_cannot_be_is_refused_at_once(describe):
    with pytest.raises(ConfigurationError, match=r"nearest sizes are \[8, 12\]"):
        describe(phases=[flipkit.Phase(16, 8, image_size=10)])


def test_mask_phases_of_a_curve_go_from_its_start_to_its_end():
    def ratios(name, **settings):
        return [p.mask_ratio for p in flipkit.mask_phases(name, 800, 8, **settings)]

    linear = ratios("linear", start=0.75, end=0.0, buckets=4)
    np.testing.assert_allclose(linear, [0.75, 0.5, 0.25, 0.0])
    cosine = ratios("cosine", start=0.8, end=0.0, buckets=5)
    expected = [0.8 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    np.testing.assert_allclose(cosine, expected, atol=1e-12)
    assert ratios("constant", start=0.5, buckets=4) == [0.5]
    assert ratios([0.5] * 9 + [0.0]) == [0.5, 0.0]


def test_mask_phases_share_the_pairs_and_lose_no_batch():
    phases = flipkit.mask_phases("linear", 1_000, 8, start=0.75, end=0.25, buckets=3)
    assert sum(phase.samples for phase in phases) == 1_000
    assert max(p.steps for p in phases) - min(p.steps for p in phases) <= 1
    assert [p.steps for p in flipkit.mask_phases([0.5] * 9 + [0.0], 800, 8)] == [90, 10]


def test_neighbours_that_keep_equally_many_tokens_are_one_phase():
    phases = flipkit.mask_phases("linear", 800, 8, start=0.5, end=0.4, buckets=4, tokens=16)
    assert [kept_count(16, p.mask_ratio) for p in phases] == [8, 9, 10]  # of four buckets


def test_one_rate_runs_on_over_all_mask_phases():
    schedule = flipkit.WarmupCosine(1e-2, warmup=160)
    whole = schedule.bind(8, 800)
    step = 0
    for phase in flipkit.mask_phases("linear", 800, 8, schedule, buckets=4):
        rate = phase.schedule.bind(phase.batch_size, phase.samples, start=step)
        for inside in (0, phase.steps // 2, phase.steps - 1):
            np.testing.assert_allclose(rate(step + inside), whole(step + inside), rtol=1e-5)
        step += phase.steps


@pytest.mark.parametrize(
    ("ratios", "settings", "told"),
    [
        ("cosin", {}, "Did you mean 'cosine'"),
        ([], {}, "Expected from 1 to 100 ratios"),
        ([0.5] * 101, {}, "Received: 101 ratios"),
        ("linear", {"name": "mask_ration"}, "Did you mean 'mask_ratio'"),
        ("linear", {"buckets": 0}, "buckets=0"),
    ],
)
def test_mask_phases_that_cannot_be_are_refused(ratios, settings, told):
    with pytest.raises(FlipkitError, match=told):
        flipkit.mask_phases(ratios, 800, 8, **settings)


def test_a_stretch_longer_than_what_is_left_is_refused():
    rate = flipkit.schedules.Stretch(flipkit.Constant(1e-3), before=600, whole=800)
    with pytest.raises(ConfigurationError, match="300 samples after the first 600"):
        rate.bind(8, 300)


def test_more_programs_than_phases_are_told_apart():
    told = messages.compiled({0: 1, 2: 3})
    assert (
        told
        == "Compiled 4 programs of the training step for 2 phases, 3 for phase 2: each costs time."
    )


def test_each_ratio_is_compiled_once_and_its_masks_are_drawn(describe, tmp_path):
    """Three ratios, of which every phase has several windows and a checkpoint: three programs."""
    pytest.importorskip("matplotlib")
    rate = flipkit.WarmupCosine(1e-2)
    phases = flipkit.mask_phases([0.75, 0.5, 0.0], 96, 8, rate)
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flipkit.records.drawing.draw_run", lambda rows, path: None)
        patch.setattr(
            "flipkit.records.drawing.draw_masks",
            lambda rows, patch, path, **words: drawn.update({path.name: (rows, words)}),
        )
        outcome = start(describe(phases=phases), tmp_path / "run", picture=True)
    assert "Compiled 3 programs of the training step for 3 phases." in outcome.said
    assert [*drawn] == ["masks_0.png", "masks_1.png"]  # the last phase keeps all
    for (rows, words), kept, first in zip(drawn.values(), (4, 8), (0, 4), strict=True):
        assert words["first"] == first
        assert len(rows) == 4
        for _, pixels, masks in rows:
            assert pixels.shape == (16, 16, 3)
            assert masks.shape == (4, 16)
            assert (masks.sum(axis=1) == kept).all()


def test_a_step_that_does_not_fit_is_answered_in_a_sentence(describe, monkeypatch):
    def fit(self, *args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory. Used 71.0G of 15.5G hbm.\nmore")

    monkeypatch.setattr(flipkit.FLIP, "fit", fit)
    with pytest.raises(ConfigurationError) as problem:
        describe().start()
    assert str(problem.value).startswith(
        "A step of phase 0, 8 pairs, needs 71.0 of 15.5 GiB memory on a device. Set phases.0.microbatch, "
    )
    assert "\n" not in str(problem.value)


def test_another_error_of_a_step_is_passed_on(describe, monkeypatch):
    def fit(self, *args, **kwargs):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(flipkit.FLIP, "fit", fit)
    with pytest.raises(RuntimeError, match="something else"):
        describe().start()


def test_a_run_of_a_plugin_that_is_not_here_is_another_run(describe, tmp_path):
    describe().start(tmp_path)
    text = (tmp_path / "run.json").read_text()
    assert "flipkit>CaptionedShapes" in text
    gone = text.replace("flipkit>CaptionedShapes", "flipkit_gone>Shapes")
    (tmp_path / "run.json").write_text(gone)
    with pytest.raises(ConfigurationError, match="holds another run") as problem:
        describe().start(tmp_path)
    assert "flipkit_gone>Shapes" in str(problem.value)
