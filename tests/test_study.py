"""Studies: what is trained, under which budget, what isn't trained again, and what the table may say."""

import json
import os
import types

import pytest

from flipkit import callbacks, planning, recipe, study
from flipkit.commands import compare_settings, shell
from flipkit.errors import ConfigurationError
from flipkit.study import Study, Variant, answers, ranking

RECIPE = '''"""A tiny run, for tests."""

import flipkit


def recipe(pairs=32, mask_ratio=0.5, dim=16, tuning=0.5):
    tower = {"dim": dim, "depth": 1, "heads": 2}
    image = flipkit.ViT(image_size=32, patch_size=8, **tower)
    text = flipkit.TextTransformer(vocab=259, length=16, **tower)
    shapes = flipkit.CaptionedShapes(size=64, image_size=32)
    masked = pairs - int(pairs * tuning)
    return flipkit.Run(
        flipkit.FLIP(image, text, mask_ratio=mask_ratio, dim=16, tokenizer="bytes"),
        data=shapes,
        feed=flipkit.Feed(crop=None, threads=1),
        phases=[
            flipkit.Phase(masked, 8, flipkit.WarmupCosine(1e-3, warmup=masked // 4)),
            flipkit.Phase(pairs - masked, 8, flipkit.WarmupCosine(1e-4), mask_ratio=0.0),
        ],
        evaluators={"zero_shot": flipkit.ZeroShot(flipkit.CaptionedShapes("test", 16, image_size=32))},
        log_every=2,
    )
'''


LAST_PHASE = """\
            flipkit.Phase(pairs - masked, 8, flipkit.WarmupCosine(1e-4), mask_ratio=0.0),
"""


@pytest.fixture
def one_phase(tmp_path):
    """The recipe without its last phase."""
    path = tmp_path / "one_phase.py"
    path.write_text(RECIPE.replace(LAST_PHASE, "").replace("int(pairs * tuning)", "0"))
    return str(path)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return str(path)


def main(*arguments):
    return shell.call("compare", [*map(str, arguments)])


@pytest.fixture(scope="module")
def trained(recipe_file, tmp_path_factory):
    """A folder in which mask ratios 0 and 0.5 were compared from two seeds."""
    folder = tmp_path_factory.mktemp("study") / "ratios"
    with pytest.MonkeyPatch.context() as patch:
        for drawing in ("draw_run", "draw_masks"):  # each takes longer than the run
            patch.setattr(f"flipkit.records.drawing.{drawing}", lambda *args, **words: None)
        code = main(recipe_file, "mask_ratio=0,0.5", "samples=32", "seeds=2", "--workdir", folder)
    assert code == 0
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_variant_is_trained_from_every_seed_and_begins_alike(trained):
    results = Study(
        trained, str(json.loads((trained / "study.json").read_text())["recipe"]), {}, "samples", 32
    ).results()
    assert [(r.settings, r.seed) for r in results] == [
        ({"mask_ratio": ratio}, seed) for ratio in ("0", "0.5") for seed in (0, 1)
    ]
    assert not ranking.unequal_starts(results)
    assert len({r.initial_weights for r in results}) == 2  # a seed each
    assert {r.pairs for r in results} == {32}
    assert [r.image_tokens for r in results] == [17, 17, 9, 9]


def test_a_curve_tells_what_was_spent_on_each_of_its_points(trained):
    whole, masked = (line for line in lines(trained) if line["seed"] == 0)
    assert [e["samples"] for e in masked["evaluations"]] == [16, 32]
    assert [e["phase"] for e in masked["evaluations"]] == [0, 1]
    first, last = (e["flops"] for e in masked["evaluations"])
    assert last == pytest.approx(masked["flops"])
    # The second half sees whole pictures, so it costs what half of an unmasked run does.
    assert last - first == pytest.approx(whole["flops"] / 2)
    assert first < whole["flops"] / 2


def test_what_is_finished_is_not_trained_again_and_more_is_added(trained, recipe_file, capsys):
    before = lines(trained)
    picture = (trained / "comparison.png").stat().st_mtime_ns
    code = main(recipe_file, "mask_ratio=0.5,0.75", "samples=32", "seeds=1", "--workdir", trained)
    assert code == 0
    after = lines(trained)
    assert after[: len(before)] == before
    assert [line["settings"] for line in after[len(before) :]] == [{"mask_ratio": "0.75"}]
    told = capsys.readouterr().out
    assert "mask_ratio=0.5, seed 0: finished before" in told
    assert all(
        f"mask_ratio={ratio} " in told for ratio in (0, 0.5, 0.75)
    )  # the table has all of it
    assert (trained / "comparison.png").stat().st_mtime_ns > picture


def test_another_budget_needs_another_folder(trained, recipe_file, capsys):
    assert main(recipe_file, "mask_ratio=0,0.5", "samples=64", "--workdir", trained) == 2
    assert "holds another study" in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_left_to_it(recipe_file, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    made = Study(tmp_path, recipe_file, {}, "samples", 16)
    variant = Variant((("mask_ratio", "0"),))
    lock = tmp_path / "runs" / variant.folder / "seed=0.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = []
        assert made.run([variant], [0], said.append) == []
    assert "another process" in said[0]
    assert made.results() == []


def test_one_variant_that_cannot_be_trained_does_not_stop_the_others(
    recipe_file, tmp_path, monkeypatch
):
    trained = []

    def once(self, pairs, seed, say, pace=None):
        trained.extend(pairs)
        return {}

    monkeypatch.setattr(Study, "_train_once", once)
    made = Study(tmp_path, recipe_file, {}, "samples", 32)
    chosen = study.variants({"dim": ["18", "16"]})  # two heads of 9: no sine-cosine positions
    (failure,) = made.run(chosen, [0], lambda line: None)
    assert "dim=18, seed 0" in failure
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("budget", "amount"), [("samples", 4_000), ("flops", 2e9), ("seconds", 30)]
)
def test_a_budget_is_what_all_variants_spend(recipe_file, tmp_path, budget, amount, monkeypatch):
    rates = {0.0: 100.0, 0.5: 200.0}
    monkeypatch.setattr(
        recipe.make(recipe.load(recipe_file), {}).__class__,
        "throughput",
        lambda run, seconds, pause: rates[run.model.mask_ratio],
    )
    made = Study(tmp_path, recipe_file, {}, budget, amount)
    chosen = study.variants({"mask_ratio": ["0", "0.5"]})
    pairs, failures = made._size(chosen, lambda line: None)
    assert not failures
    spent = []
    for variant in chosen:
        run = made.sized(variant, pairs[variant])
        spent.append(
            {
                "samples": pairs[variant],
                "flops": planning.plan(run)["flops"],
                "seconds": pairs[variant] / rates[run.model.mask_ratio],
            }[budget]
        )
    assert spent == pytest.approx([amount, amount], rel=0.02)  # whole batches


def test_what_is_added_to_equal_seconds_is_measured_beside_what_is_there(
    recipe_file, tmp_path, monkeypatch
):
    """The machine is half as fast as it was: the new variant gets what it would have had then."""
    rates = {0.0: 50.0, 0.5: 100.0}
    run = recipe.make(recipe.load(recipe_file), {})
    monkeypatch.setattr(
        type(run), "throughput", lambda run, seconds, pause: rates[run.model.mask_ratio]
    )
    made = Study(tmp_path, recipe_file, {}, "seconds", 30)
    [old, new] = study.variants({"mask_ratio": ["0", "0.5"]})
    line = {"settings": dict(old.settings), "seed": 0, "pairs": 3_000, "image_tokens": 17}
    line |= {"flops": 1.0, "seconds": 30.0, "initial_weights": "a", "evaluations": []}
    (tmp_path / "results.jsonl").write_text(json.dumps(line | {"versions": {}}) + "\n")
    assert made._size([new, old], lambda line: None) == ({new: 6_000, old: 3_000}, {})


class Clock:
    """Time in which a step takes 1 s with a mask and 2 s without, and three times that after `change`."""

    def __init__(self, change):
        self.now, self.change = 0.0, change

    def step(self, model):
        cost = 1.0 if model.mask_ratio else 2.0
        self.now += 3 * cost if self.now > self.change else cost


def test_a_machine_that_changes_its_speed_in_mid_run_decides_nothing(
    tmp_path, one_phase, monkeypatch
):
    clock = Clock(change=60.0)
    ended = callbacks.Throughput.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        clock.step(self.model)
        ended(self, batch, logs)

    monkeypatch.setattr(callbacks.Throughput, "on_train_batch_end", on_train_batch_end)
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    made = Study(tmp_path / "study", one_phase, {}, "seconds", 60)
    chosen = study.variants({"mask_ratio": ["0", "0.5"]})
    for variant, pairs in zip(chosen, (240, 480), strict=True):
        made._keep_pairs(variant, pairs)  # in 60 s each at the speed they begin with
    said = []
    assert made.run(chosen, [0], said.append) == []
    whole, masked = made.results()
    assert clock.now > 200  # the machine was slow for most of it
    assert study.uneven({run.variant: run.seconds for run in (whole, masked)}) == {}
    assert whole.seconds > 90  # what is reported is what was spent
    assert whole.initial_weights == masked.initial_weights  # though they are made at once
    assert not any("training again" in line for line in said)
    found = answers.read(made.runs(masked.variant) / "seed=0")
    assert len(found) == answers.PICTURES
    assert {"index", "truth", "answer"} == set(found[0])


def test_runs_that_took_other_times_are_trained_again_with_other_numbers_of_pairs(
    recipe_file, tmp_path, monkeypatch
):
    made = Study(tmp_path, recipe_file, {}, "seconds", 60)
    chosen = study.variants({"mask_ratio": ["0", "0.5"]})
    pairs_per_second = {"0": 10.0, "0.5": 24.0}

    def once(self, pairs, seed, say, pace=None):
        found = {}
        for variant, count in pairs.items():
            [(_, ratio)] = variant.settings
            seconds = count / pairs_per_second[ratio]
            found[variant] = study.Result(
                dict(variant.settings), seed, count, 9, 1.0, seconds, "a", [], {}
            )
        return found

    monkeypatch.setattr(Study, "_train_once", once)
    for variant, guess in zip(chosen, (600, 1_200), strict=True):  # 60 and 50 s
        made._keep_pairs(variant, guess)
    said = []
    assert made.run(chosen, [0], said.append) == []
    assert [r.seconds for r in made.results()] == [55.0, 55.0]
    assert "training again" in " ".join(said)
    assert study.uneven({chosen[0]: 100.0, chosen[1]: 110.0}) == {}
    assert set(study.uneven({chosen[0]: 100.0, chosen[1]: 111.0})) == {*chosen}


def test_runs_that_would_not_end_together_are_stopped_after_a_quarter(
    one_phase, tmp_path, monkeypatch
):
    """Their speeds aren't what was measured before: nobody waits for the end to train them again."""
    per_pair = {0.0: 0.1, 0.5: 0.04}
    trained_steps = []

    def start(run, folder, recipe, pause):
        folder.mkdir(parents=True)
        (folder / "start.json").write_text(json.dumps({"initial_weights": "a"}))
        samples = seconds = 0
        for step in range(1, run.steps + 1):
            samples += 8
            seconds += 8 * per_pair[run.model.mask_ratio]
            trained_steps.append(step)
            row = {"step": step, "samples": samples, "seconds": seconds, "phase": 0, "loss": 1.0}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            pause(step)

    made = Study(tmp_path / "study", one_phase, {}, "seconds", 60)
    chosen = study.variants({"mask_ratio": ["0", "0.5"]})
    monkeypatch.setattr(type(made.sized(chosen[0], 64)), "start", start)
    monkeypatch.setattr(study.answers, "write", lambda model, evaluators, folder: None)
    for variant, guess in zip(chosen, (720, 1_500), strict=True):  # 72 and 60 s
        made._keep_pairs(variant, guess)
    said = []
    assert made.run(chosen, [0, 1], said.append) == []
    # A quarter of 72 s was spent, the rest goes at a pace between those for 60 and for 72 s.
    [again] = [line for line in said if "again" in line]
    assert "mask_ratio=0 would take 68 s" in again
    assert "mask_ratio=0.5 would take 60 s" in again
    whole, _, masked, _ = made.results()
    assert (whole.pairs, masked.pairs) == pytest.approx((720 * 64 / 68, 1_500 * 64 / 60), rel=0.02)
    assert [r.pairs for r in made.results()] == [whole.pairs, whole.pairs] + [masked.pairs] * 2
    # A quarter of the first pairs, and then two seeds to their ends.
    expected = (720 + 1_500) / 8 / 4 + 2 * (whole.pairs + masked.pairs) / 8
    assert len(trained_steps) == pytest.approx(expected, abs=2)


def test_a_recipe_without_pairs_gets_its_phases_longer(tmp_path):
    path = tmp_path / "fixed.py"
    path.write_text(
        RECIPE.replace("recipe(pairs=32, ", "recipe(").replace(
            "    tower =", "    pairs = 64\n    tower =", 1
        )
    )
    run = Study(tmp_path, str(path), {}, "samples", 320).sized(Variant(()), 320)
    assert [phase.pairs for phase in run.phases] == [160, 160]
    assert run.phases[0].schedule.warmup == 40


# The command's words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("(1,2),[3,4]", ["(1,2)", "[3,4]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("0.5", ["0.5"]),
    ],
)
def test_commas_inside_brackets_divide_nothing(text, parts):
    assert study.split_values(text) == parts


def test_seeds_are_how_many_or_which():
    assert study.seeds_of("3") == [0, 1, 2]
    assert study.seeds_of("4,2") == [4, 2]
    assert study.seeds_of("4,") == [4]
    for wrong in ("0", "many", "0.5"):
        with pytest.raises(ConfigurationError, match="how many seeds"):
            study.seeds_of(wrong)


def test_values_are_combined_and_variants_added_by_hand_in_any_order():
    found = study.variants({"a": ["1", "2"], "b": ["x"]}, [{"c": "3"}, {"b": "x", "a": "1"}])
    assert [v.label for v in found] == ["a=1, b=x", "a=2, b=x", "c=3"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mask_ratio=0,0.5"], "Expected one budget"),
        (["mask_ratio=0,0.5", "samples=8", "seconds=3"], "samples and seconds"),
        (["mask_ratio=0,0.5", "seconds=-1"], "above 0"),
        (["samples=8"], "Nothing to compare"),
        (["model.maskr=random,grid", "samples=800"], "Did you mean 'model.masker'"),
        (["mask_ratio=0,1.5", "samples=800"], "mask_ratio=1.5"),
        (
            ["mask_ratio=0,0.5", "samples=800", "metric=zero_shto/top1"],
            "Did you mean 'zero_shot/...'",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    arguments, told, recipe_file, tmp_path, capsys
):
    assert main(recipe_file, *arguments, "--workdir", tmp_path / "study") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in told.split(" and "))
    assert not os.listdir(tmp_path)  # the right command isn't refused for what the wrong one left


def test_places_in_a_row_are_told_as_a_range():
    assert compare_settings.ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert compare_settings.ranges([]) == ""
