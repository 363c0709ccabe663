"""Ranks the variants of a study, tests their differences, and computes leads over a baseline."""

import dataclasses
import statistics

import numpy as np
from scipy import stats

from flipkit.errors import UnknownName, nearest
from flipkit.study import Result, Variant

CONFIDENCE = 0.95  # that no difference found in the whole study is due to chance


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant of a study, over its seeds.

    Attributes:
        results: its runs.
        values: the metric of each run that did not diverge.
        before: its mean before the last phase, None where there is only one phase.
        like: the places, from 1, of the other rows that do not differ from it significantly; None
            where there are too few seeds for a test.
        diverged: how many runs ended with numbers that are not finite. Such a variant ranks after
            all others.
    """

    variant: Variant
    results: list[Result]
    values: list[float]
    before: float | None
    like: list[int] | None
    diverged: int = 0

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that did not diverge; None if all did."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def curve(self, over: str, metric: str) -> list[list[float]]:
        """Returns [budget spent, metric] at each evaluation, means over the seeds that did not diverge.

        If a run has fewer evaluations, the curve leaves out the others' last ones before the end.

        Args:
            over: "seconds", "samples" or "flops".
        """
        sound = [result for result in self.results if not result.diverged]
        runs = [[(e[over], e[metric]) for e in result.evaluations] for result in sound]
        fewest = min(map(len, runs), default=0)
        runs = [[*run[: fewest - 1], run[-1]] if fewest else [] for run in runs]
        return [np.mean(points, axis=0).tolist() for points in zip(*runs, strict=True)]

    def reaches(self, value: float, over: str, metric: str) -> float | None:
        """Returns the budget that the mean curve had spent when it first reached `value`, or None.

        Interpolates linearly between evaluations. A curve begins at budget 0 and metric 0.
        """
        spent, reached = 0.0, 0.0
        for next_spent, next_reached in self.curve(over, metric):
            if next_reached >= value:
                share = (value - reached) / ((next_reached - reached) or 1.0)
                return spent + share * (next_spent - spent)
            spent, reached = next_spent, next_reached
        return None


@dataclasses.dataclass(frozen=True)
class Lead:
    """When a variant reached what the baseline had at its end.

    Attributes:
        variant: the variant.
        spent: {"seconds", "samples", "flops"} that it spent until then; None if it never did.
        sooner: the baseline's budget divided by that of the variant; None if it never did.
    """

    variant: Variant
    spent: dict[str, float] | None
    sooner: float | None


def ranked(results: list[Result], metric: str) -> list[Row]:
    """Returns a row for each variant, best first, with the rows that do not differ from it.

    Tukey's test (with Kramer's correction for different numbers of seeds) finds the differences at
    CONFIDENCE for all pairs together, since of many pairs some are far apart by chance. A variant with
    a diverged run comes after all others and is not compared.
    """
    groups: dict[Variant, list[Result]] = {}
    for result in results:
        groups.setdefault(result.variant, []).append(result)
    values = {
        variant: [r.value(metric) for r in group if not r.diverged]
        for variant, group in groups.items()
    }
    failed = {variant: sum(r.diverged for r in group) for variant, group in groups.items()}

    def place(variant):
        found = values[variant]
        return failed[variant] > 0, -float(np.mean(found)) if found else np.inf

    order = sorted(groups, key=place)
    sound = [variant for variant in order if not failed[variant]]
    apart = told_apart([values[variant] for variant in sound])
    rows = []
    for i, variant in enumerate(order):
        earlier = [
            value
            for result in groups[variant]
            if not result.diverged and (value := result.before_last_phase(metric)) is not None
        ]
        before = float(np.mean(earlier)) if earlier else None
        like = None
        if apart is not None and i < len(sound):
            like = [j + 1 for j in range(len(sound)) if j != i and not apart[i, j]]
        rows.append(Row(variant, groups[variant], values[variant], before, like, failed[variant]))
    return rows


def told_apart(groups: list[list[float]]) -> np.ndarray | None:
    """Returns bool (groups, groups): whose means differ significantly; None without enough values.

    The test needs two groups, and two values in each.
    """
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return None
    if all(np.ptp(group) == 0 for group in groups):  # no spread: all unequal means differ
        means = np.array([group[0] for group in groups])
        return means[:, None] != means
    return stats.tukey_hsd(*groups).pvalue < 1 - CONFIDENCE


def find(rows: list[Row], label: str) -> Row:
    """Returns the row whose variant has the label, such as `mask_ratio=0.0`.

    Raises:
        UnknownName: no row has it; the message names the nearest label.
    """
    for row in rows:
        if row.variant.label == label:
            return row
    raise UnknownName(
        f"No variant is {label!r}. {nearest(label, [row.variant.label for row in rows])}"
    )


def leads(rows: list[Row], baseline: Row, metric: str, budget: str) -> list[Lead]:
    """Returns for every other row when its mean curve reached the baseline's final mean."""
    if baseline.mean is None:
        return []
    whole = baseline.curve(budget, metric)[-1][0]
    found = []
    for row in rows:
        if row is baseline:
            continue
        spent = {}
        for over in ("seconds", "samples", "flops"):
            spent[over] = row.reaches(baseline.mean, over, metric)
        reached = spent[budget]
        found.append(
            Lead(
                row.variant,
                None if reached is None else spent,
                None if not reached else whole / reached,
            )
        )
    return found


def unequal_starts(results: list[Result]) -> dict[int, list[str]]:
    """Returns {seed: digests} of the seeds whose runs began with different weights."""
    starts: dict[int, set[str]] = {}
    for result in results:
        starts.setdefault(result.seed, set()).add(result.initial_weights)
    return {seed: sorted(digests) for seed, digests in starts.items() if len(digests) > 1}


def unequal_seconds(results: list[Result], tolerance: float) -> dict[int, float]:
    """Returns {seed: largest |seconds / mean - 1| of its runs} where that exceeds `tolerance`."""
    times: dict[int, list[float]] = {}
    for result in results:
        times.setdefault(result.seed, []).append(result.seconds)
    means = {seed: statistics.fmean(found) for seed, found in times.items()}
    off = {seed: max(abs(t / means[seed] - 1) for t in found) for seed, found in times.items()}
    return {seed: share for seed, share in off.items() if share > tolerance}
