"""Studies: what is trained, under which budget, what isn't trained again, and what the table may say."""

import io
import json
import os
import pathlib

import numpy as np
import pytest
from absl import flags
from rich.console import Console

from flipkit import compare, planning, study
from flipkit.errors import ConfigurationError, UnknownName
from flipkit.study import Result, Study, Variant

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


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return str(path)


def main(*arguments):
    flags.FLAGS.unparse_flags()
    flags.FLAGS.set_gnu_getopt(True)
    return compare.main(flags.FLAGS(["compare", *map(str, arguments)]))


@pytest.fixture(scope="module")
def trained(recipe_file, tmp_path_factory):
    """A folder in which mask ratios 0 and 0.5 were compared from two seeds."""
    folder = tmp_path_factory.mktemp("study") / "ratios"
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
    assert not study.unequal_starts(results)
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
    monkeypatch.setattr(
        Study, "_train", lambda self, v, seed, *_: trained.append(self.sized(v, 32))
    )
    made = Study(tmp_path, recipe_file, {}, "samples", 32)
    chosen = study.variants({"dim": ["18", "16"]})  # two heads of 9: no sine-cosine positions
    (failure,) = made.run(chosen, [0], lambda line: None)
    assert "dim=18, seed 0" in failure
    assert len(trained) == 1


@pytest.mark.parametrize(("budget", "amount"), [("samples", 4_000), ("flops", 2e9), ("seconds", 3)])
def test_a_budget_is_what_all_variants_spend(recipe_file, tmp_path, budget, amount, monkeypatch):
    rates = {0.0: 100.0, 0.5: 200.0}
    monkeypatch.setattr(
        study.recipe.make(study.recipe.load(recipe_file), {}).__class__,
        "throughput",
        lambda run: rates[run.model.mask_ratio],
    )
    made = Study(tmp_path, recipe_file, {}, budget, amount)
    spent = []
    for variant in study.variants({"mask_ratio": ["0", "0.5"]}):
        pairs = made._pairs(variant, tmp_path / variant.folder)
        run = made.sized(variant, pairs)
        spent.append(
            {
                "samples": pairs,
                "flops": planning.plan(run)["flops"],
                "seconds": pairs / rates[run.model.mask_ratio],
            }[budget]
        )
    assert spent == pytest.approx([amount, amount], rel=0.02)  # whole batches


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


# What may be said ---------------------------------------------------------------------------------


def result(label, seed, value, start="a", earlier=()):
    """A finished run, evaluated at the end of its last phase and, if told, of those before."""
    found = [{"phase": i, "zero_shot/top1": v} for i, v in enumerate([*earlier, value])]
    return Result({"masker": label}, seed, 8, 4, 1e9, 2.0, start, found, {})


def test_what_differs_by_less_than_its_spread_is_not_told_apart():
    rng = np.random.default_rng(0)
    close = [("far", 0.5), ("near", 0.201), ("nearer", 0.2)]
    rows = study.ranked(
        [result(label, s, mean + 0.01 * rng.normal()) for label, mean in close for s in range(3)],
        "zero_shot/top1",
    )
    assert rows[0].variant.label == "masker=far"
    assert [row.like for row in rows] == [[], [3], [2]]
    assert rows[0].mean == pytest.approx(0.5, abs=0.02)


def test_many_variants_of_pure_chance_are_seldom_told_apart():
    """Single t-tests of 45 pairs would find a difference in most such studies."""
    found = 0
    for trial in range(20):
        draws = np.random.default_rng(trial).normal(size=(10, 3))
        found += bool(study.told_apart(draws.tolist()).any())
    assert found <= 4  # 1 is expected, more than 4 three times in 1,000


def test_what_was_reached_before_the_last_phase_is_told():
    tuned = [result("a", 0, 0.5, earlier=[0.1, 0.3]), result("a", 1, 0.7, earlier=[0.1, 0.4])]
    rows = study.ranked([*tuned, result("b", 0, 0.2)], "zero_shot/top1")
    assert [row.before for row in rows] == [pytest.approx(0.35), None]
    assert "before the last phase" in printed(rows)
    assert "35.00 %" in printed(rows)
    assert "before the last phase" not in printed(rows[1:])


def printed(rows):
    console = Console(width=200, file=io.StringIO())
    console.print(compare.table(rows, "zero_shot/top1", ""))
    return console.file.getvalue()


def test_of_one_seed_nothing_is_told():
    rows = study.ranked([result("a", 0, 0.1), result("b", 0, 0.9)], "zero_shot/top1")
    assert [row.like for row in rows] == [None, None]
    assert rows[0].spread is None


def test_runs_that_began_with_other_weights_are_told():
    assert study.unequal_starts([result("a", 0, 0.1, "x"), result("b", 0, 0.1, "y")]) == {
        0: ["x", "y"]
    }
    assert study.unequal_starts([result("a", 0, 0.1, "x"), result("b", 1, 0.1, "y")]) == {}


def test_a_metric_that_nothing_has_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'zero_shot/top1'"):
        study.ranked([result("a", 0, 0.1)], "zero_shot/top5")


@pytest.mark.parametrize(
    ("name", "metric", "digits"),
    [("maskers", "zero_shot/top1", 2), ("emoji", "zero_shot/train/top1", 1)],
)
def test_the_tables_of_the_page_are_what_their_studies_found(name, metric, digits):
    docs = pathlib.Path(__file__).parents[1] / "docs"
    record = json.loads((docs / "studies" / name / "study.json").read_text())
    flops, fixed = record["flops"], record["fixed"]
    results = Study(docs / "studies" / name, record["recipe"], fixed, "flops", flops).results()
    lines = (docs / "maskers.md").read_text(encoding="utf-8").replace("*", "").splitlines()
    for row in study.ranked(results, metric):
        assert len(row.values) == 3
        reached = f"| {100 * row.mean:.{digits}f} ± {100 * row.spread:.{digits}f} |"
        spent = f"| {row.results[0].image_tokens} | {row.results[0].pairs:,} |"
        assert any(reached in line and spent in line for line in lines), row.variant.label


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
        (["model.maskr=random,grid", "samples=800"], "Did you mean 'masker'"),
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
    assert compare.ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert compare.ranges([]) == ""
