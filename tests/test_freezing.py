"""Variables left as they are, by their paths: no gradient, no moments, through files and phases."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

import flipkit
from flipkit.commands import run_recipe as command
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical
from flipkit.training import loop

NEVER = ["image/block_00/attention", "text/position"]


def values(model):
    return {canonical(v.path): np.array(v) for v in model.weights}


def moved(model, before):
    """Paths of the weights that are no longer what they were."""
    return {
        path for path, value in values(model).items() if not np.array_equal(value, before[path])
    }


def of(names, path):
    return any(path == name or path.startswith(f"{name}/") for name in names)


def learned(model):
    return {canonical(v.path) for v in model.trainable_variables}


def test_frozen_weights_stay_bit_equal_while_the_others_move(tiny, pairs):
    model = tiny(frozen=NEVER)
    model.compile(flipkit.AdamW(1e-2))
    before = values(model)
    model.fit(pairs(16), batch_size=8, epochs=2, verbose=0)
    still = {path for path in before if of(NEVER, path)}
    assert len(still) == 4 * 2 + 1
    assert moved(model, before) == before.keys() - still


def flops(model, batch):
    """What the compiled training step computes."""
    model.optimizer.build(model.trainable_variables)
    state = [[v.value for v in model.trainable_variables]]
    state.append([v.value for v in model.non_trainable_variables])
    state.append([v.value for v in model.optimizer.variables])
    state.append([v.value for v in model.metrics_variables])
    lowered = jax.jit(model.train_step).lower(tuple(state), (batch,))
    return lowered.compile().cost_analysis()["flops"]


def test_program_has_no_gradient_and_no_moments_of_a_frozen_tower(tiny, pairs):
    counts = {}
    for frozen in ((), "image", "image/**"):
        model = tiny(frozen=frozen, mask_ratio=0.0)
        model.compile(flipkit.AdamW(1e-3))
        counts[frozen] = flops(model, pairs())
        image = {path for path in learned(model) if path.startswith("image/")}
        moments = {v.path for v in model.optimizer.variables if "flip_image_" in v.path}
        moments -= {path for path in moments if "flip_image_projection" in path}
        assert bool(image) == bool(moments) == (not frozen)
        assert "image_projection/kernel" in learned(model)
    assert counts["image"] == counts["image/**"] < 0.75 * counts[()]


def test_summary_tells_how_many_numbers_are_learned(tiny):
    told = []
    model = tiny(frozen=["text"])
    model.summary(print_fn=lambda line, **_: told.append(line))
    text = sum(v.size for path, v in values(model).items() if path.startswith("text/"))
    everything = sum(v.size for path, v in values(model).items() if path != "step")
    expected = f"Training changes {everything - text:,} of {everything:,} numbers. Frozen: text."
    assert told[-1] == model.learning_summary() == expected


def test_what_is_frozen_can_be_changed_and_then_needs_another_compile(tiny, pairs):
    model = tiny()
    model.compile(flipkit.AdamW(1e-2))
    model.fit(pairs(), batch_size=8, verbose=0)
    everything = learned(model)
    model.frozen = ["image", "text"]
    with pytest.raises(ValueError, match=r"compile\(\)"):
        model.fit(pairs(), batch_size=8, verbose=0)
    assert learned(model) == {"image_projection/kernel", "text_projection/kernel", "logit_scale"}
    model.compile(flipkit.AdamW(1e-2))
    before = values(model)
    model.fit(pairs(), batch_size=8, verbose=0)
    assert moved(model, before) == learned(model) | {"step"}
    model.frozen = []
    assert learned(model) == everything


def test_a_part_that_does_not_learn_stays_so_when_frozen_is_emptied(tiny):
    image = flipkit.ViT(image_size=16, patch_size=4, dim=16, depth=1, heads=2, trainable=False)
    model = tiny(image=image, frozen=["image", "text/norm"])
    model.build()
    model.frozen = []
    assert not [path for path in learned(model) if path.startswith("image/")]
    assert "text/norm/gamma" in learned(model)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("imge/**", "frozen.*'imge/[*][*]'.*Did you mean 'image'"),
        ("image/blok_00", "Did you mean 'image/block_00'"),
        ("text/block_00/attention/kernel", "Did you mean 'text/block_00/attention/key'"),
    ],
)
def test_a_pattern_that_freezes_nothing_is_refused_with_the_nearest_path(tiny, pattern, told):
    with pytest.raises(ConfigurationError, match=told):
        tiny(frozen=[pattern]).build()
    model = tiny(frozen=["image"])
    model.build()
    with pytest.raises(ConfigurationError, match=told):
        model.frozen = [pattern]
    assert model.frozen == ["image"]
    assert "image/norm/gamma" not in learned(model)


def test_patterns_are_strings(tiny):
    with pytest.raises(ConfigurationError, match=r"patterns.*frozen=\[1\]"):
        tiny(frozen=[1])
    assert tiny(frozen="image").frozen == ["image"]


def test_a_file_keeps_what_is_frozen(tiny, pairs, tmp_path):
    model = tiny(frozen=NEVER)
    model.compile(flipkit.AdamW(1e-2, no_decay=["attention/query/bias", "text/position"]))
    model.fit(pairs(), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras", compile=True)
    assert again.frozen == NEVER
    assert learned(again) == learned(model)
    before = values(again)
    assert moved(model, before) == set()
    for one in (model, again):
        one.fit(pairs(seed=1), batch_size=8, shuffle=False, verbose=0)
    assert moved(again, before) == learned(again) | {"step"}
    assert moved(again, values(model)) == set()


# Runs


def lit(tiny, **changes):
    """The image tower is frozen for 4 steps, and learns for 4."""
    schedule = flipkit.Constant(1e-2)
    phases = [
        flipkit.Phase(32, 8, schedule, mask_ratio=0.0, frozen=["image/**"]),
        flipkit.Phase(32, 8, schedule, mask_ratio=0.5, frozen=[]),
    ]
    settings = {
        "optimizer": flipkit.AdamW(no_decay=["bias", "image/norm"], use_ema=True, ema_momentum=0.5),
        "data": flipkit.CaptionedShapes(size=24, image_size=32),
        "feed": flipkit.Feed(crop=None, threads=1),
        "log_every": 2,
        "checkpoint_every": 2,
    }
    model = tiny(text={"vocab": 259, "length": 8}, tokenizer="bytes")
    return flipkit.Run(model, **{"phases": phases, **settings, **changes})


class Killed(Exception):
    """What stands for a kill within a process."""


def start(run, folder, until=None):
    """Runs it, or as much as there is before it prints `until` lines about steps."""
    seen = []

    def say(line):
        seen.append(line.startswith("step"))
        if sum(seen) == until:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flipkit.records.drawing.pyplot", lambda: None)
        if until is None:
            return run.start(folder, say=say)
        with pytest.raises(Killed):
            run.start(folder, say=say)
    return None


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """A finished run, and the weights with which each of its phases was entered."""
    entered, optimizers = [], []
    enter = loop.Loop.enter

    def watched(self, index, previous):
        enter(self, index, previous)
        model = self.run.model
        entered.append(values(model))
        state = {v.path.split("/")[-1]: np.array(v) for v in model.optimizer.variables}
        optimizers.append(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "enter", watched)
        model = start(lit(tiny), tmp_path_factory.mktemp("tuned"))
    return model, entered, optimizers


def test_a_phase_freezes_and_the_next_one_thaws(tuned):
    model, (first, second), _ = tuned
    image = {path for path in first if path.startswith("image/")}
    changed = {path for path in first if not np.array_equal(first[path], second[path])}
    assert image
    assert changed == first.keys() - image
    assert moved(model, second) == first.keys()
    assert model.frozen == []


def test_moments_are_kept_and_thawed_variables_start_without(tuned):
    _, (_, weights), (first, second) = tuned
    assert second.keys() > first.keys()
    new = second.keys() - first.keys()
    assert all("flip_image_" in name for name in new)
    assert second["iteration"] == 4
    assert all(second[name].any() for name in first if name.endswith("velocity"))
    assert not any(second[name].any() for name in new if name.endswith(("momentum", "velocity")))
    name = "flip_image_norm_gamma_average"
    assert name in new
    np.testing.assert_array_equal(second[name], weights["image/norm/gamma"])


@pytest.mark.parametrize("until", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_run_goes_on_within_either_phase(tiny, tuned, tmp_path, until):
    start(lit(tiny), tmp_path, until)
    again = start(lit(tiny), tmp_path)
    assert moved(again, values(tuned[0])) == set()


def test_a_run_says_at_once_which_later_phase_freezes_nothing(tiny):
    run = lit(tiny).with_override("phases.1.frozen", ["imag"])
    with pytest.raises(ConfigurationError, match=r"phases\.1\.frozen.*Did you mean 'image'"):
        run.start()
    assert lit(tiny).with_override("phases.0.frozen", "text").phases[0].frozen == ["text"]
    assert lit(tiny).with_override("model.frozen", "text").model.frozen == ["text"]


def test_the_weights_a_run_starts_from_are_told_whatever_is_frozen(tiny, tmp_path):
    said = []
    for frozen in ([], ["image"]):
        run = lit(tiny).with_override("model.frozen", frozen)
        folder = tmp_path / str(len(frozen))
        start(run, folder, until=1)
        said.append((folder / "start.json").read_text())
    assert said[0] == said[1]


def test_the_run_table_tells_how_many_numbers_each_phase_learns(tiny):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(command.run_table(lit(tiny), "lit", "runs/lit"))
    told = console.export_text()
    model = tiny(text={"vocab": 259, "length": 8})
    model.build()
    model.frozen = ["image/**"]
    assert model.learning_summary() in told
    model.frozen = []
    assert model.learning_summary() in told
