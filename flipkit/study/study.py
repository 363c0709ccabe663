"""`Study`: trains a recipe with several settings and seeds for equal time, samples or FLOPs."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax  # clears the compiled programs of a finished run, which Keras cannot

from flipkit import files, planning, recipe
from flipkit.errors import ConfigurationError, FlipkitError, nearest
from flipkit.records import journal, messages, progress
from flipkit.study import answers, turns
from flipkit.study.pace import LOOK, TOLERANCE, OffPace, Pace, uneven
from flipkit.study.results import Result, Variant, _evaluation, _versions, summary

BUDGETS = ("seconds", "samples", "flops")
PROBE_PAIRS = 1_000_000  # any length: neither throughput nor FLOPs per pair depend on it
PROBE = 0.2  # share of a study's seconds in which each variant's speed is measured


class Study:
    """A recipe with several variants, each trained from several seeds under one budget.

    A study is stored in a folder: `study.json` has the settings that all runs share, `results.jsonl` a
    line for each finished run, `runs/` the workdirs. `run` skips finished runs and resumes stopped ones,
    so that several calls and several processes (each locks the run that it trains) can work on a study,
    and later calls can add variants and seeds. To add runs only the two files are needed.

    Args:
        folder: that of the study.
        name: the recipe, as for `flipkit.recipe.load`.
        fixed: settings of all runs: {name: text}.
        budget: one of BUDGETS, equal for all runs.
        amount: of the budget: seconds of training, pairs, or FLOPs.

    Raises:
        ConfigurationError: the folder holds another study; the message shows both.
    """

    def __init__(self, folder, name, fixed, budget, amount):
        if budget not in BUDGETS:
            raise ConfigurationError(f"Unknown budget: {budget!r}. {nearest(budget, BUDGETS)}")
        self.folder, self.name, self.fixed = pathlib.Path(folder), name, dict(fixed)
        self.budget, self.amount = budget, float(amount)
        self.function = recipe.load(name)
        path, record = self.folder / "study.json", self._record()
        if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != record:
            raise ConfigurationError(
                f"{self.folder} holds another study: {json.dumps(before)}. Choose another --workdir, "
                f"or repeat its settings. Received: {json.dumps(record)}"
            )

    def _record(self):
        return {"recipe": self.name, "fixed": self.fixed, self.budget: self.amount}

    def results(self) -> list[Result]:
        """Returns the finished runs, by variant in the order of the first finished run, then by seed."""
        path = self.folder / "results.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
        found = [Result(**json.loads(line)) for line in lines]
        order = list(dict.fromkeys(result.variant for result in found))
        return sorted(found, key=lambda result: (order.index(result.variant), result.seed))

    def run(self, chosen: list[Variant], seeds, say: Callable[[str], None]) -> list[str]:
        """Trains the runs that are not finished, seed by seed, so that every variant has a result early.

        For equal seconds the variants of a seed take turns, a window of steps each, so that a change of
        the machine's speed affects all of them. They are in memory together.

        Args:
            chosen: the variants.
            seeds: ints.
            say: called with each line of progress.

        Returns:
            A line for each run that could not be made or trained.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (path := self.folder / "study.json").exists():
            files.write_json(path, self._record())
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
        """Trains the variants of `group` in turns and writes their results; returns lines of failures."""
        pairs, failures = self._size(group, say)
        # Later seeds have the first seed's final numbers of pairs.
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
        """Trains variants in turns; returns {variant: its Result, or the FlipkitError that ended it}.

        Args:
            pairs: {variant: how many it trains on}.
            pace: `Pace`, which may stop the runs.
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
                say(f"{variant.label}, seed {seed}: {summary(result)}")
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
            evaluations=[_evaluation(row, plan) for row in rows if messages.evaluations(row)],
            versions=_versions(run),
        )

    def sized(self, variant: Variant, pairs: int):
        """Returns the variant's run over about `pairs` pairs.

        Passes them as the recipe's argument `pairs`. In the run of a recipe without that argument,
        scales each phase, and its warm-up, by one factor.
        """
        settings = {**self.fixed, **dict(variant.settings)}
        if "pairs" in recipe.dials(self.function):
            return recipe.make(self.function, {**settings, "pairs": str(int(pairs))})
        return recipe.resized(recipe.make(self.function, settings), pairs)

    def runs(self, variant: Variant) -> pathlib.Path:
        """Returns the folder of a variant's workdirs."""
        return self.folder / "runs" / variant.folder

    def _pairs(self, variant) -> int | None:
        """Returns how many pairs a variant's runs train on, or None before `_keep_pairs` has stored it.

        All seeds have the same number.
        """
        kept = self.runs(variant) / "pairs.json"
        if kept.exists():
            return json.loads(kept.read_text())["pairs"]
        return next((r.pairs for r in self.results() if r.variant == variant), None)

    def _keep_pairs(self, variant, pairs) -> int:
        files.write_json(self.runs(variant) / "pairs.json", {"pairs": int(pairs)})
        return int(pairs)

    def _size(self, group, say) -> tuple[dict[Variant, int], dict[Variant, FlipkitError]]:
        """Returns ({variant: its pairs}, {variant: error that prevents it}) of the variants of `group`."""
        pairs, failures, unknown = {}, {}, {}
        for variant in group:
            stored = self._pairs(variant)
            try:
                run = self.sized(variant, stored or PROBE_PAIRS)
            except FlipkitError as problem:
                failures[variant] = problem
                continue
            if stored is not None:
                pairs[variant] = stored
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
        """Measures variants in turns; returns {variant: pairs in the study's seconds, or its FlipkitError}.

        A study with results measures its first variant too. The added variants get the pairs that take
        as long as that variant's pairs take now.
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
        """Yields whether this process may train a run, and locks the run while the context lasts."""
        path = self.runs(variant) / f"seed={seed}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows has no such lock: use one process for a study
            yield True
            return
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            # Another process may have finished it before the lock.
            yield not self._finished(variant, seed)
