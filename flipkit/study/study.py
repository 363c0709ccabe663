"""A study: one recipe with several settings and seeds, each for the same time, samples or FLOPs."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax  # forgets the programs of a run that is over, for which Keras has no word

from flipkit import files, planning, recipe
from flipkit.errors import ConfigurationError, FlipkitError, nearest
from flipkit.records import journal, messages, progress
from flipkit.study import answers, turns
from flipkit.study.pace import LOOK, TOLERANCE, OffPace, Pace, uneven
from flipkit.study.results import Result, Variant, _evaluation, _versions, told

BUDGETS = ("seconds", "samples", "flops")
PROBE_PAIRS = 1_000_000  # any length: neither throughput nor FLOPs per pair depend on it
PROBE = 0.2  # of a study's seconds, for which each variant's speed is measured


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
            evaluations=[_evaluation(row, plan) for row in rows if messages.evaluations(row)],
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
        files.write_json(self.runs(variant) / "pairs.json", {"pairs": int(pairs)})
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
