"""Ranking: what a table may say of a study's results, and who leads by how much."""

import io
import json
import pathlib

import numpy as np
import pytest
from rich.console import Console

from flipkit.commands import compare_settings
from flipkit.errors import UnknownName
from flipkit.study import Result, Study, pictures, ranking


def result(label, seed, value, start="a", earlier=()):
    """A finished run, evaluated at the end of its last phase and, if told, of those before."""
    found = [{"phase": i, "zero_shot/top1": v} for i, v in enumerate([*earlier, value])]
    return Result({"masker": label}, seed, 8, 4, 1e9, 2.0, start, found, {})


def test_what_differs_by_less_than_its_spread_is_not_told_apart():
    rng = np.random.default_rng(0)
    close = [("far", 0.5), ("near", 0.201), ("nearer", 0.2)]
    rows = ranking.ranked(
        [result(label, s, mean + 0.01 * rng.normal()) for label, mean in close for s in range(3)],
        "zero_shot/top1",
    )
    assert rows[0].variant.label == "masker=far"
    assert [row.like for row in rows] == [[], [3], [2]]
    assert rows[0].mean == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_many_variants_of_pure_chance_are_seldom_told_apart():
    """Single t-tests of 45 pairs would find a difference in most such studies."""
    found = 0
    for trial in range(20):
        draws = np.random.default_rng(trial).normal(size=(10, 3))
        found += bool(ranking.told_apart(draws.tolist()).any())
    assert found <= 4  # 1 is expected, more than 4 three times in 1,000


def test_what_was_reached_before_the_last_phase_is_told():
    tuned = [result("a", 0, 0.5, earlier=[0.1, 0.3]), result("a", 1, 0.7, earlier=[0.1, 0.4])]
    rows = ranking.ranked([*tuned, result("b", 0, 0.2)], "zero_shot/top1")
    assert [row.before for row in rows] == [pytest.approx(0.35), None]
    assert "before last phase" in printed(rows)
    assert "35.00 %" in printed(rows)
    assert "before last phase" not in printed(rows[1:])


def printed(rows):
    console = Console(width=200, file=io.StringIO())
    console.print(compare_settings.table(rows, "zero_shot/top1", ""))
    return console.file.getvalue()


def test_of_one_seed_nothing_is_told():
    rows = ranking.ranked([result("a", 0, 0.1), result("b", 0, 0.9)], "zero_shot/top1")
    assert [row.like for row in rows] == [None, None]
    assert rows[0].spread is None


def test_runs_that_began_with_other_weights_are_told():
    assert ranking.unequal_starts([result("a", 0, 0.1, "x"), result("b", 0, 0.1, "y")]) == {
        0: ["x", "y"]
    }
    assert ranking.unequal_starts([result("a", 0, 0.1, "x"), result("b", 1, 0.1, "y")]) == {}


def test_a_metric_that_nothing_has_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'zero_shot/top1'"):
        ranking.ranked([result("a", 0, 0.1)], "zero_shot/top5")


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
    for row in ranking.ranked(results, metric):
        assert len(row.values) == 3
        reached = f"| {100 * row.mean:.{digits}f} ± {100 * row.spread:.{digits}f} |"
        spent = f"| {row.results[0].image_tokens} | {row.results[0].pairs:,} |"
        assert any(reached in line and spent in line for line in lines), row.variant.label


def test_a_mean_curve_ends_where_its_runs_do_though_one_was_evaluated_less_often():
    results = [curve("a", 0, [0.1, 0.2, 0.3, 0.5]), curve("a", 1, [0.3, 0.4, 0.7])]
    (row,) = ranking.ranked(results, "zero_shot/top1")
    reached = [value for _, value in row.curve("seconds", "zero_shot/top1")]
    np.testing.assert_allclose(reached, [0.2, 0.3, 0.6])
    assert row.curve("seconds", "zero_shot/top1")[-1][0] == 100.0


@pytest.mark.parametrize(
    ("name", "metric"),
    [("characters", "zero_shot/top1"), ("emoji_ratios", "zero_shot/train/top1")],
)
def test_the_tables_of_equal_time_are_what_their_studies_found(name, metric):
    docs = pathlib.Path(__file__).parents[1] / "docs"
    record = json.loads((docs / "studies" / name / "study.json").read_text())
    seconds, fixed = record["seconds"], record["fixed"]
    results = Study(docs / "studies" / name, record["recipe"], fixed, "seconds", seconds).results()
    lines = (docs / "performance.md").read_text(encoding="utf-8").splitlines()
    for row in ranking.ranked(results, metric):
        assert len(row.values) == 5
        least, most = (f"{100 * bound(row.values):.1f}" for bound in (min, max))
        told = f"| {100 * row.mean:.1f} ± {100 * row.spread:.1f} % | {least}, {most} |"
        pairs = f"| {row.results[0].pairs:,} |"
        assert any(told in line and pairs in line for line in lines), row.variant.label


def curve(label, seed, values, seconds=100.0, **last):
    """A finished run, evaluated at equal distances of its time."""
    found = [
        {
            "phase": 0,
            "samples": 1_000 * (i + 1),
            "seconds": seconds * (i + 1) / len(values),
            "flops": 1e9 * (i + 1),
            "loss": 1.0,
            "zero_shot/top1": value,
        }
        for i, value in enumerate(values)
    ]
    found[-1] |= last
    return Result({"masker": label}, seed, 8, 4, 1e9, seconds, "a", found, {})


def test_a_run_that_is_not_a_number_is_ranked_last_and_called_diverged():
    perfect = curve("broken", 0, [0.5, 1.0], **{"zero_shot/non_finite": 8})
    lost = curve("lost", 0, [0.5, None], loss=None)
    rows = ranking.ranked([perfect, lost, curve("plain", 0, [0.1, 0.2])], "zero_shot/top1")
    assert rows[0].variant.label == "masker=plain"
    assert [row.diverged for row in rows] == [0, 1, 1]
    assert [row.mean for row in rows] == [0.2, None, None]
    told = printed(rows)
    assert told.count("diverged") == 2
    remarks = " ".join(compare_settings.remarks([perfect], rows, "samples"))
    assert "masker=broken: 1 of 1 runs DIVERGED" in remarks


def test_a_variant_of_which_one_run_diverged_comes_after_those_of_which_none_did():
    results = [curve("fast", s, [0.9]) for s in range(2)] + [curve("fast", 2, [0.9], loss=None)]
    results += [curve("slow", s, [0.1 + s / 100]) for s in range(3)]
    rows = ranking.ranked(results, "zero_shot/top1")
    assert [row.variant.label for row in rows] == ["masker=slow", "masker=fast"]
    assert rows[1].mean == pytest.approx(0.9)
    assert [row.like for row in rows] == [None, None]  # one sound variant: nothing to tell apart


def test_a_lead_is_when_the_mean_curve_passes_where_the_baseline_ends():
    results = [
        *(curve("none", seed, [0.1, 0.2]) for seed in (0, 1)),
        *(curve("half", seed, [0.1, 0.3, 0.4, 0.5]) for seed in (0, 1)),
        *(curve("never", seed, [0.05, 0.1]) for seed in (0, 1)),
    ]
    rows = ranking.ranked(results, "zero_shot/top1")
    baseline = ranking.find(rows, "masker=none")
    half, never = ranking.leads(rows, baseline, "zero_shot/top1", "seconds")
    # Half way between its first evaluation, at 25 s, and its second, at 50 s.
    assert half.spent == pytest.approx({"seconds": 37.5, "samples": 1_500, "flops": 1.5e9})
    assert half.sooner == pytest.approx(100 / 37.5)
    assert (never.variant.label, never.spent, never.sooner) == ("masker=never", None, None)
    console = Console(width=80, file=io.StringIO())
    console.print(compare_settings.leads_table([half, never], baseline, "zero_shot/top1"))
    assert "2.67x" in console.file.getvalue()
    assert "never" in console.file.getvalue()


def test_a_baseline_that_is_not_there_is_answered_with_the_nearest():
    rows = ranking.ranked([curve("none", 0, [0.1])], "zero_shot/top1")
    with pytest.raises(UnknownName, match="Did you mean 'masker=none'"):
        ranking.find(rows, "masker=non")


def test_seeds_whose_runs_took_other_times_are_told():
    even = [curve("a", 0, [0.1], 100.0), curve("b", 0, [0.1], 104.0)]
    odd = [curve("a", 1, [0.1], 100.0), curve("b", 1, [0.1], 120.0)]
    assert ranking.unequal_seconds(even + odd, 0.05) == {1: pytest.approx(1 / 11)}
    assert "NO (seed 1 by 9%)" in " ".join(compare_settings.remarks(even + odd, [], "seconds"))
    assert "yes" in " ".join(compare_settings.remarks(even, [], "seconds"))


def test_the_tables_fit_a_terminal_of_80_columns():
    long = "a-masker-with-a-name"
    rows = ranking.ranked(
        [curve(name, seed, [0.1, 0.2]) for name in (long, "b") for seed in (0, 1)],
        "zero_shot/top1",
    )
    console = Console(width=80, file=io.StringIO())
    console.print(compare_settings.table(rows, "zero_shot/top1", "a study"))
    console.print(compare_settings.costs_table(rows))
    told = console.file.getvalue()
    assert f"masker={long} 20.00 % ± 0.00 %" in " ".join(told.split())
    assert f"masker={long} 4 8 1e+09 100.0" in " ".join(told.split())


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_picture_has_a_panel_over_seeds_only_where_there_are_seeds(seeds, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    results = [curve("none", seed, [0.1, 0.2]) for seed in range(seeds)]
    results += [curve("half", seed, [0.1, 0.3]) for seed in range(seeds)]
    rows = ranking.ranked(results, "zero_shot/top1")
    baseline = ranking.find(rows, "masker=none")
    leads = ranking.leads(rows, baseline, "zero_shot/top1", "seconds")
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    path = pictures.draw_study(
        rows,
        "zero_shot/top1",
        "seconds",
        tmp_path / "a.png",
        title="",
        chance=0.01,
        baseline=baseline,
        leads=leads,
    )
    assert path.stat().st_size > 5_000
    [figure] = drawn
    assert len(figure.axes) == (1 if seeds == 1 else 2)
    axis = figure.axes[0]
    assert axis.get_xlim()[0] == 0
    texts = [text.get_text() for text in axis.texts]
    assert {"masker=none", "masker=half", "chance"} <= set(texts)
    assert any("sooner" in text for text in texts)
    colours = {line.get_color() for line in axis.lines if line.get_linewidth() == 2}
    assert len(colours) == 2
    monkeypatch.undo()
    plt.close("all")
