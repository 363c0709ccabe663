"""Studies: one recipe with several settings and seeds, each for the same time, samples or FLOPs."""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax  # forgets the programs of a run that is over, for which Keras has no word

from flipkit import answers, journal, planning, progress, recipe, report, turns
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest
from flipkit.settings import parse

BUDGETS = ("seconds", "samples", "flops")
PROBE_PAIRS = 1_000_000  # any length: neither throughput nor FLOPs per pair depend on it
PROBE = 0.2  # of a study's seconds, for which each variant's speed is measured
TOLERANCE = 0.05  # runs for equal seconds of which one is so far from their mean are trained again
LOOK = 0.25  # of the steps, after which newly sized runs are stopped if they won't end together


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
            was in, the `samples`, `seconds` and `flops` spent until then, the training `loss` and the
            metrics; None stands for a number that is not finite.
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

    @property
    def diverged(self) -> bool:
        """Whether a number of the last evaluation, or a vector that it judged, was not finite."""
        final = self.evaluations[-1] if self.evaluations else {}
        bad = (n for n, v in final.items() if n.endswith("/non_finite") and v)
        return None in final.values() or any(bad)

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

        For equal seconds the variants of a seed take turns, a window of steps each, so that a machine
        that changes its speed changes it for all. They are in memory together.

        Returns:
            What went wrong, a line for each run that couldn't be made or trained.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (path := self.folder / "study.json").exists():
            journal.write_text(path, json.dumps(self._record(), indent=1) + "\n")
        failures: list[str] = []
        for seed in seeds:
            groups = [chosen] if self.budget == "seconds" else [[variant] for variant in chosen]
            for group in groups:
                with contextlib.ExitStack() as claims:
                    mine = []
                    for variant in group:
                        place = f"{variant.label}, seed {seed}"
                        if self._finished(variant, seed):
                            say(f"{place}: finished before.")
                        elif not claims.enter_context(self._claim(variant, seed)):
                            say(f"{place}: another process trains it.")
                        else:
                            mine.append(variant)
                    failures += self._train(mine, seed, say)
        return failures

    def _finished(self, variant, seed):
        return any(r.variant == variant and r.seed == seed for r in self.results())

    def _train(self, group, seed, say) -> list[str]:
        """Trains the variants of `group` in turns, and writes their results; returns what went wrong."""
        pairs, failures = self._size(group, say)
        # Later seeds have the pairs that the first one ended with.
        first = self.budget == "seconds" and not self.results()
        pace = Pace(self.amount) if first else None
        found = self._train_once(pairs, seed, say, pace)
        seconds, verb = {v: r.seconds for v, r in found.items() if isinstance(r, Result)}, "took"
        for stopped in (r for r in found.values() if isinstance(r, OffPace)):
            seconds, verb = stopped.seconds, "would take"
        if self.budget == "seconds" and (factors := uneven(seconds)):
            spent = ", ".join(f"{v.label} {verb} {count:,.0f} s" for v, count in seconds.items())
            say(f"Seed {seed}: {spent}. One is over {TOLERANCE:.0%} off the mean: training again.")
            for variant, factor in factors.items():
                pairs[variant] = self._keep_pairs(variant, pairs[variant] * factor)
            for variant in pairs:
                shutil.rmtree(self.runs(variant) / f"seed={seed}", ignore_errors=True)
            found = self._train_once(pairs, seed, say)
        for variant, result in found.items():
            if not isinstance(result, Result):
                failures[variant] = result
                continue
            with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(result), allow_nan=False) + "\n")
        lines = [f"{v.label}, seed {seed}: {problem}" for v, problem in failures.items()]
        for line in lines:
            say(f"Failed: {line}")
        return lines

    def _train_once(self, pairs, seed, say, pace=None) -> dict[Variant, Any]:
        """{variant: its Result, or the FlipkitError that ended it}, all trained in turns.

        Args:
            pairs: {variant: how many it trains on}.
            pace: `Pace`, which may stop them.
        """
        runs = {v: self.sized(v, count).with_override("seed", seed) for v, count in pairs.items()}
        plans = {variant: planning.plan(run) for variant, run in runs.items()}
        for variant, plan in plans.items():
            tokens = plan["phases"][0]["tokens"]["image"]
            count = sum(phase.samples for phase in runs[variant].phases)
            say(
                f"{variant.label}, seed {seed}: {count:,} pairs of {tokens or 'all'} image tokens, "
                f"{plan['flops']:.3g} FLOPs"
            )

        def task(variant, bar):
            def train(pause):
                def paused(step):
                    bar(step)
                    pause(step / runs[variant].steps)
                    if pace is not None and LOOK <= step / runs[variant].steps < 1:
                        pace.look(variant, plans, folder)

                folder = self.runs(variant) / f"seed={seed}"
                model = runs[variant].start(folder, recipe=self.name, pause=paused)
                answers.write(model, runs[variant].evaluators, folder)
                return self._result(variant, seed, runs[variant], plans[variant], folder)

            return train

        with progress.bars({v.label: run.steps for v, run in runs.items()}) as bars:
            tasks = [task(variant, bars[variant.label]) for variant in runs]
            try:
                results = turns.in_turns(tasks)
            finally:
                jax.clear_caches()
        found = dict(zip(runs, results, strict=True))
        for variant, result in found.items():
            if isinstance(result, BaseException) and not isinstance(result, FlipkitError):
                raise result
            if isinstance(result, Result):
                say(f"{variant.label}, seed {seed}: {told(result)}")
        return found

    def _result(self, variant, seed, run, plan, folder) -> Result:
        rows = journal.read_metrics(folder)
        return Result(
            settings=dict(variant.settings),
            seed=seed,
            pairs=rows[-1]["samples"],
            image_tokens=plan["phases"][0]["tokens"]["image"],
            flops=float(plan["flops"]),
            seconds=rows[-1]["seconds"],
            initial_weights=json.loads((folder / "start.json").read_text())["initial_weights"],
            evaluations=[_evaluation(row, plan) for row in rows if report.evaluations(row)],
            versions=_versions(run),
        )

    def sized(self, variant: Variant, pairs: int):
        """The variant's run over about so many pairs.

        They are the recipe's argument `pairs`, from which it derives its phases; a recipe that has none
        gets each phase, and its warm-up, made longer or shorter by one factor.
        """
        settings = {**self.fixed, **dict(variant.settings)}
        if "pairs" in recipe.dials(self.function):
            return recipe.make(self.function, {**settings, "pairs": str(int(pairs))})
        return recipe.resized(recipe.make(self.function, settings), pairs)

    def runs(self, variant: Variant) -> pathlib.Path:
        """The folder of a variant's workdirs."""
        return self.folder / "runs" / variant.folder

    def _pairs(self, variant) -> int | None:
        """How many a variant's runs train on: counted or measured once and then kept, so that all
        seeds have as many. None if nobody has yet.
        """
        kept = self.runs(variant) / "pairs.json"
        if kept.exists():
            return json.loads(kept.read_text())["pairs"]
        return next((r.pairs for r in self.results() if r.variant == variant), None)

    def _keep_pairs(self, variant, pairs) -> int:
        self.runs(variant).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"pairs": int(pairs)}) + "\n"
        journal.write_text(self.runs(variant) / "pairs.json", text)
        return int(pairs)

    def _size(self, group, say) -> tuple[dict[Variant, int], dict[Variant, FlipkitError]]:
        """({variant: its pairs}, {variant: why it can't be made}) of the variants of `group`."""
        pairs, failures, unknown = {}, {}, {}
        for variant in group:
            known = self._pairs(variant)
            try:
                run = self.sized(variant, known or PROBE_PAIRS)
            except FlipkitError as problem:
                failures[variant] = problem
                continue
            if known is not None:
                pairs[variant] = known
            elif self.budget == "samples":
                pairs[variant] = self._keep_pairs(variant, self.amount)
            elif self.budget == "flops":
                samples = sum(phase.samples for phase in run.phases)
                share = self.amount / planning.plan(run)["flops"]
                pairs[variant] = self._keep_pairs(variant, samples * share)
            else:
                unknown[variant] = run
        for variant, found in self._measured(unknown, say).items():
            if isinstance(found, FlipkitError):
                failures[variant] = found
            else:
                pairs[variant] = self._keep_pairs(variant, found)
        return pairs, failures

    def _measured(self, runs, say) -> dict[Variant, Any]:
        """{variant: pairs in the study's seconds, or the FlipkitError that ended it}, measured in turns.

        What is added to a study is measured beside a variant that is in it, and gets the pairs that
        this one would have needed as long for.
        """
        if not runs:
            return {}
        first = next(iter(self.results()), None)
        beside = {} if first is None else {first.variant: self.sized(first.variant, first.pairs)}
        say(f"Measuring {len(beside | runs)} speeds, in turns.")
        tasks = [
            lambda pause, run=run: run.throughput(self.amount * PROBE, pause=pause)
            for run in (beside | runs).values()
        ]
        rates = dict(zip(beside | runs, turns.in_turns(tasks), strict=True))
        jax.clear_caches()
        for rate in rates.values():
            if isinstance(rate, BaseException) and not isinstance(rate, FlipkitError):
                raise rate
        seconds = self.amount
        if first is not None and isinstance(rates[first.variant], float):
            seconds = first.pairs / rates[first.variant]
        return {
            variant: rates[variant]
            if isinstance(rates[variant], FlipkitError)
            else seconds * rates[variant]
            for variant in runs
        }

    @contextlib.contextmanager
    def _claim(self, variant, seed) -> Iterator[bool]:
        """Whether this process may train a run: no other does. Free again when the process ends."""
        path = self.runs(variant) / f"seed={seed}.lock"
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


class OffPace(FlipkitError):
    """Ends runs for equal seconds that won't end together; `seconds` {variant: what it would take}."""

    def __init__(self, seconds):
        super().__init__("The runs won't end together.")
        self.seconds = seconds


class Pace:
    """What runs that were sized for equal seconds will take, as far as a part of each shows.

    Args:
        expected: seconds of each, as they were sized.

    Attributes:
        seconds: {variant: of its whole training}, of those that were looked at. The rest of it goes
            at the mean of two paces, the one that it was sized with and the one that it has shown,
            and grows with the FLOPs.
    """

    def __init__(self, expected):
        self.expected = expected
        self.seconds: dict[Variant, float] = {}

    def look(self, variant, plans, folder):
        """Notes the pace of a variant's run, if this is the first look at it.

        Args:
            folder: the run's workdir.
            plans: {variant: plan} of all that are trained.

        Raises:
            OffPace: the paces of all are known, and are `uneven`.
        """
        if variant not in self.seconds:
            row, plan = journal.read_metrics(folder)[-1], plans[variant]
            share = _flops(row["samples"], plan) / plan["flops"]
            whole = (row["seconds"] / share + self.expected) / 2
            self.seconds[variant] = row["seconds"] + (1 - share) * whole
        if len(self.seconds) == len(plans) and uneven(self.seconds):
            raise OffPace(self.seconds)


def told(result: Result) -> str:
    """A finished run in one line."""
    final = report.evaluations(result.evaluations[-1]) if result.evaluations else {}
    found = [f"{n} {report.shown(n, v)}" for n, v in list(final.items())[:3] if v is not None]
    line = f"{', '.join(found) or 'no evaluation'}; {result.seconds:,.1f} s of training."
    return f"DIVERGED. {line}" if result.diverged else line


def uneven(seconds: dict[Variant, float]) -> dict[Variant, float]:
    """{variant: what its pairs are to be multiplied with, so that all take the mean}.

    Empty if each is within TOLERANCE of the mean.
    """
    if not seconds:
        return {}
    mean = statistics.fmean(seconds.values())
    if all(abs(spent / mean - 1) <= TOLERANCE for spent in seconds.values()):
        return {}
    return {variant: mean / spent for variant, spent in seconds.items()}


def _evaluation(row, plan):
    spent = {name: row[name] for name in ("phase", "samples", "seconds", "loss")}
    found = spent | {"flops": _flops(row["samples"], plan)} | report.evaluations(row)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _flops(samples, plan):
    """FLOPs of training on the first `samples` of a plan's."""
    flops, left = 0.0, samples
    for phase in plan["phases"]:
        done = min(left, phase["samples"])
        flops += phase["flops"] * done / phase["samples"]
        left -= done
    return flops


def _versions(run):
    record = run.record()
    return {**record["versions"], **record["plugins"]}


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
