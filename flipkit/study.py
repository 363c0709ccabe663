"""Studies: one recipe with several settings and seeds, each for the same time, samples or FLOPs."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator

import jax  # forgets the programs of a run that is over, for which Keras has no word
import numpy as np
from scipy import stats

from flipkit import journal, planning, recipe, report
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest
from flipkit.settings import parse

BUDGETS = ("seconds", "samples", "flops")
PROBE_PAIRS = 1_000_000  # any length: neither throughput nor FLOPs per pair depend on it
CONFIDENCE = 0.95  # that no two variants are told apart by chance, in the whole study


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the things compared: what is set beside what all have in common, in any order."""

    settings: tuple[tuple[str, str], ...]

    def __post_init__(self):
        object.__setattr__(self, "settings", tuple(sorted(self.settings)))

    @property
    def label(self) -> str:
        """The settings by the last part of their paths: `masker=grid, mask_ratio=0.5`."""
        return ", ".join(f"{name.rsplit('.')[-1]}={value}" for name, value in self.settings)

    @property
    def folder(self) -> str:
        """A name for files."""
        told = ",".join(f"{name}={value}" for name, value in self.settings)
        return re.sub(r"[^\w.,=+-]+", "_", told) or "as-it-is"


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run of a study, as a line of its `results.jsonl`.

    Attributes:
        settings: the variant's.
        seed: the run's.
        pairs: what it trained on.
        image_tokens: that pass through the image tower in the first phase, or None.
        flops: of training, counted from the traced program (`flipkit.plan`).
        seconds: of training, without evaluations and compilation.
        initial_weights: their digest.
        evaluations: one dict for each time it was evaluated, such as the end of a phase: the `phase` it
            was in, the `samples`, `seconds` and `flops` spent until then, and the metrics.
        versions: of flipkit, Keras, JAX and the plugins.
    """

    settings: dict[str, str]
    seed: int
    pairs: int
    image_tokens: int | None
    flops: float
    seconds: float
    initial_weights: str
    evaluations: list[dict]
    versions: dict[str, str]

    @property
    def variant(self) -> Variant:
        """What it is a run of."""
        return Variant(tuple(self.settings.items()))

    def value(self, metric: str) -> float:
        """The metric at the end of training."""
        final = self.evaluations[-1] if self.evaluations else {}
        if metric not in final:
            known = [name for name in final if "/" in name]
            raise UnknownName(f"No evaluation has {metric!r}. {nearest(metric, known)}")
        return final[metric]

    def before_last_phase(self, metric: str) -> float | None:
        """The metric when the last phase, such as unmasked tuning, began; None of a single phase."""
        last = max(evaluation["phase"] for evaluation in self.evaluations)
        before = [e[metric] for e in self.evaluations if e["phase"] < last]
        return before[-1] if before else None


def variants(values: dict[str, list[str]], also: Iterable[dict[str, str]] = ()) -> list[Variant]:
    """Every combination of the values, and those that are added by hand.

    Args:
        values: {name of a setting: its values}.
        also: settings of further variants.
    """
    product = [] if not values else itertools.product(*values.values())
    found = [Variant(tuple(zip(values, chosen, strict=True))) for chosen in product]
    found += [Variant(tuple(settings.items())) for settings in also]
    return list(dict.fromkeys(found))


class Study:
    """A recipe with several variants, each trained from several seeds under one budget.

    It lives in a folder: `study.json` says what all runs have in common, `results.jsonl` has a line for
    each that is finished, `runs/` their workdirs. What is finished isn't run again and what was
    stopped goes on, so that a study may be made in several sittings, by several processes (a run is
    locked by the one that trains it), and be added to later. Only the two files are needed to add.

    Args:
        folder: where it lives.
        name: the recipe, as `flipkit.recipe.load` knows it.
        fixed: settings of all runs: {name: text}.
        budget: one of BUDGETS: what is equal.
        amount: of that: seconds of training, pairs, or FLOPs.

    Raises:
        ConfigurationError: the folder holds another study; the message names what differs.
    """

    def __init__(self, folder, name, fixed, budget, amount):
        if budget not in BUDGETS:
            raise ConfigurationError(f"Unknown budget: {budget!r}. {nearest(budget, BUDGETS)}")
        self.folder, self.name, self.fixed = pathlib.Path(folder), name, dict(fixed)
        self.budget, self.amount = budget, float(amount)
        self.function = recipe.load(name)
        path, asked = self.folder / "study.json", self._record()
        if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != asked:
            raise ConfigurationError(
                f"{self.folder} holds another study: {json.dumps(before)}. Choose another --workdir, "
                f"or ask for the same. Received: {json.dumps(asked)}"
            )

    def _record(self):
        return {"recipe": self.name, "fixed": self.fixed, self.budget: self.amount}

    def results(self) -> list[Result]:
        """What is finished, variants in the order in which they first were."""
        path = self.folder / "results.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
        found = [Result(**json.loads(line)) for line in lines]
        order = list(dict.fromkeys(result.variant for result in found))
        return sorted(found, key=lambda result: (order.index(result.variant), result.seed))

    def run(self, chosen: list[Variant], seeds, say: Callable[[str], None]) -> list[str]:
        """Trains what isn't finished, seed by seed, so that every variant has a result early.

        Returns:
            What went wrong, a line for each run that couldn't be made or trained.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (path := self.folder / "study.json").exists():
            journal.write_text(path, json.dumps(self._record(), indent=1) + "\n")
        failures = []
        wanted = [(variant, seed) for seed in seeds for variant in chosen]
        for number, (variant, seed) in enumerate(wanted, 1):
            place = f"[{number}/{len(wanted)}] {variant.label}, seed {seed}"
            if self._finished(variant, seed):
                say(f"{place}: finished before.")
                continue
            with self._claim(variant, seed) as mine:
                if not mine:
                    say(f"{place}: another process trains it.")
                    continue
                try:
                    self._train(variant, seed, place, say)
                except FlipkitError as problem:
                    failures.append(f"{variant.label}, seed {seed}: {problem}")
                    say(f"{place}: failed. {problem}")
        return failures

    def _finished(self, variant, seed):
        return any(r.variant == variant and r.seed == seed for r in self.results())

    def _train(self, variant, seed, place, say):
        folder = self.folder / "runs" / variant.folder / f"seed={seed}"
        run = self.sized(variant, self._pairs(variant, folder.parent))
        run = run.with_override("seed", seed)
        plan = planning.plan(run)
        tokens = plan["phases"][0]["tokens"]["image"]
        say(
            f"{place}: {sum(p.samples for p in run.phases):,} pairs of {tokens or 'all'} image tokens, "
            f"{plan['flops']:.3g} FLOPs"
        )
        began = time.perf_counter()
        try:
            run.start(folder, recipe=self.name)
        finally:
            jax.clear_caches()
        rows = journal.read_metrics(folder)
        result = Result(
            settings=dict(variant.settings),
            seed=seed,
            pairs=rows[-1]["samples"],
            image_tokens=tokens,
            flops=float(plan["flops"]),
            seconds=rows[-1]["seconds"],
            initial_weights=json.loads((folder / "start.json").read_text())["initial_weights"],
            evaluations=[_evaluation(row, plan) for row in rows if report.evaluations(row)],
            versions=_versions(run),
        )
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(result)) + "\n")
        took = time.perf_counter() - began
        final = report.evaluations(result.evaluations[-1]) if result.evaluations else {}
        told = ", ".join(f"{n} {report.shown(n, v)}" for n, v in list(final.items())[:3])
        say(
            f"{place}: {told or 'no evaluation'}; {result.seconds:,.0f} s of {took:,.0f} in training."
        )

    def sized(self, variant: Variant, pairs: int):
        """The variant's run over about so many pairs.

        They are the recipe's argument `pairs`, from which it derives its phases; a recipe that has none
        gets each phase, and its warm-up, made longer or shorter by one factor.
        """
        settings = {**self.fixed, **dict(variant.settings)}
        if "pairs" in recipe.dials(self.function):
            return recipe.make(self.function, {**settings, "pairs": str(int(pairs))})
        run = recipe.make(self.function, settings)
        factor, known = pairs / sum(phase.pairs for phase in run.phases), run.paths()
        longer = [f"phases.{i}.pairs" for i in range(len(run.phases))]
        longer += [f"phases.{i}.schedule.warmup" for i in range(len(run.phases))]
        return run.with_overrides({p: int(known[p] * factor) for p in longer if p in known})

    def _pairs(self, variant, folder) -> int:
        """How many the budget allows; measured once and then kept, so that all seeds have as many."""
        kept = folder / "pairs.json"
        if kept.exists():
            return json.loads(kept.read_text())["pairs"]
        others = [result.pairs for result in self.results() if result.variant == variant]
        if others:
            return others[0]
        run = self.sized(variant, PROBE_PAIRS)
        if self.budget == "samples":
            pairs = self.amount
        elif self.budget == "seconds":
            pairs = self.amount * run.throughput()
        else:
            samples = sum(phase.samples for phase in run.phases)
            pairs = self.amount * samples / planning.plan(run)["flops"]
        folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists():  # another process may have measured it meanwhile
            journal.write_text(kept, json.dumps({"pairs": int(pairs)}) + "\n")
        return json.loads(kept.read_text())["pairs"]

    @contextlib.contextmanager
    def _claim(self, variant, seed) -> Iterator[bool]:
        """Whether this process may train a run: no other does. Free again when the process ends."""
        path = self.folder / "runs" / variant.folder / f"seed={seed}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows has no such lock: one process for a study there
            yield True
            return
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            # It may have been finished between the look at the results and the lock.
            yield not self._finished(variant, seed)


def _evaluation(row, plan):
    flops, left = 0.0, row["samples"]
    for phase in plan["phases"]:
        done = min(left, phase["samples"])
        flops += phase["flops"] * done / phase["samples"]
        left -= done
    spent = {name: row[name] for name in ("phase", "samples", "seconds")} | {"flops": flops}
    return spent | report.evaluations(row)


def _versions(run):
    record = run.record()
    return {**record["versions"], **record["plugins"]}


# What came out ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant of a finished study, over its seeds.

    Attributes:
        results: its runs.
        values: the metric of each.
        before: its mean before the last phase, None where there is only one phase.
        like: the places, from 1, of the rows that it can't be told apart from, itself left out;
            None where there are too few seeds to tell.
    """

    variant: Variant
    results: list[Result]
    values: list[float]
    before: float | None
    like: list[int] | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None of one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def curve(self, over: str, metric: str) -> list[list[float]]:
        """[what was spent, the metric] at each evaluation, means over seeds.

        Args:
            over: "seconds", "samples" or "flops".
        """
        runs = ([(e[over], e[metric]) for e in result.evaluations] for result in self.results)
        return [np.mean(points, axis=0).tolist() for points in zip(*runs, strict=False)]


def ranked(results: list[Result], metric: str) -> list[Row]:
    """The variants from the best down, and which of them can't be told apart.

    Two are told apart where Tukey's test (with Kramer's correction where they have different numbers of
    seeds) says so at CONFIDENCE for all pairs together: of many pairs, some are far apart by chance.
    """
    groups: dict[Variant, list[Result]] = {}
    for result in results:
        groups.setdefault(result.variant, []).append(result)
    values = {variant: [r.value(metric) for r in group] for variant, group in groups.items()}
    order = sorted(groups, key=lambda variant: -float(np.mean(values[variant])))
    apart = told_apart([values[variant] for variant in order])
    rows = []
    for i, variant in enumerate(order):
        found = (result.before_last_phase(metric) for result in groups[variant])
        earlier = [value for value in found if value is not None]
        before = float(np.mean(earlier)) if earlier else None
        others = (j for j in range(len(order)) if j != i)
        like = None if apart is None else [j + 1 for j in others if not apart[i, j]]
        rows.append(Row(variant, groups[variant], values[variant], before, like))
    return rows


def told_apart(groups: list[list[float]]) -> np.ndarray | None:
    """Bool (groups, groups): whose means differ by more than their spread; None where none can be told.

    Every group needs two values, and there have to be two groups.
    """
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return None
    if all(np.ptp(group) == 0 for group in groups):  # no spread: whatever differs differs
        means = np.array([group[0] for group in groups])
        return means[:, None] != means
    return stats.tukey_hsd(*groups).pvalue < 1 - CONFIDENCE


def unequal_starts(results: list[Result]) -> dict[int, list[str]]:
    """{seed: digests} of the seeds whose runs began with different weights, where there are any."""
    starts: dict[int, set[str]] = {}
    for result in results:
        starts.setdefault(result.seed, set()).add(result.initial_weights)
    return {seed: sorted(digests) for seed, digests in starts.items() if len(digests) > 1}


def check_metric(run, metric: str):
    """Refuses a metric that no evaluator of the run gives."""
    if metric.partition("/")[0] not in run.evaluators:
        known = [f"{name}/..." for name in run.evaluators]
        hint = nearest(metric, known) if known else "The recipe has no evaluators."
        raise ConfigurationError(
            f"Expected metric=EVALUATOR/NUMBER, such as zero_shot/top1. Received: {metric!r}. {hint}"
        )


def split_values(text: str) -> list[str]:
    """`a,b,(1,2)` -> `["a", "b", "(1,2)"]`: commas inside brackets and quotes divide nothing.

    A literal as a whole, such as a list, is one value too.
    """
    parts, depth, quote, start = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def seeds_of(text: str) -> list[int]:
    """`3` -> `[0, 1, 2]`, `1,2` -> `[1, 2]`, `4,` -> `[4]`."""
    value = parse(text)
    value = tuple(range(value)) if type(value) is int else value
    if not isinstance(value, (tuple, list)) or not value or any(type(v) is not int for v in value):
        raise ConfigurationError(
            f"Expected how many seeds, such as 3, or which, such as 0,1 or 4,. Received: seeds={text}"
        )
    return list(dict.fromkeys(value))
