"""Phase and Run: one training run as an object that can be read, changed by path, and started."""

import contextlib
import functools
import importlib.metadata
import inspect
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras

from flipkit import datasets, losses, optimizers, plugins, registry, report, schedules, weights
from flipkit import distribution as layouts
from flipkit.callbacks import Evaluate, check_all
from flipkit.checkpoints import Checkpoints
from flipkit.classifier import Classifier
from flipkit.errors import (
    BadSample,
    ConfigurationError,
    FlipkitError,
    UnknownName,
    nearest,
    nearest_path,
)
from flipkit.feed import Feed
from flipkit.journal import Journal
from flipkit.maskers import kept_count
from flipkit.model import FLIP, checked_size
from flipkit.paths import canonical, checked_patterns, select
from flipkit.registry import Configurable, register
from flipkit.schedules import Stretch
from flipkit.settings import as_like
from flipkit.sizes import Size
from flipkit.weights import initial

# Of the model; None goes on as it was.
PHASE_SETTINGS = ("mask_ratio", "text_mask_ratio", "frozen", "image_size")
TOKENIZER_TEXTS = 50_000  # captions that an untrained tokenizer learns from


@register
class Phase(Configurable):
    """A stretch of a run under one program.

    Args:
        pairs: image-text pairs to train on; whole batches of them are used.
        batch_size: pairs per step.
        schedule: `flipkit.Schedule` over this phase's samples; None keeps the optimizer's own rate.
        mask_ratio, text_mask_ratio: shares dropped in this phase; None leaves them as they were.
        image_size: pixels of this phase's pictures, as in `flipkit.FLIP`; None leaves it as it was, so
            that a phase at the tower's own size says that size.
        frozen: patterns of variables that this phase leaves as they are, as in `flipkit.FLIP`; None is
            those of the phase before, [] trains everything.
        optimizer: "kept" goes on with the moments of the phase before, "fresh" starts anew.
    """

    def __init__(
        self,
        pairs,
        batch_size,
        schedule=None,
        *,
        mask_ratio=None,
        text_mask_ratio=None,
        image_size: Size | None = None,
        frozen=None,
        optimizer="kept",
    ):
        self.pairs, self.batch_size = _whole("pairs", pairs), _whole("batch_size", batch_size)
        self.schedule = schedules.get(schedule)
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.image_size = tuple(image_size) if isinstance(image_size, list) else image_size
        self.frozen = None if frozen is None else checked_patterns("frozen", frozen)
        self.optimizer = optimizer
        if self.pairs < self.batch_size:
            raise ConfigurationError(
                f"A phase needs at least one batch. Received: pairs={pairs:,}, {batch_size=:,}"
            )
        for name in ("mask_ratio", "text_mask_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not (isinstance(ratio, (int, float)) and 0 <= ratio < 1):
                raise ConfigurationError(f"Expected a share in [0, 1). Received: {name}={ratio!r}")
        if optimizer not in ("kept", "fresh"):
            raise ConfigurationError(f"Expected 'kept' or 'fresh'. Received: {optimizer=}")

    @property
    def steps(self) -> int:
        """Steps of this phase."""
        return self.pairs // self.batch_size

    @property
    def samples(self) -> int:
        """Pairs that this phase uses: whole batches."""
        return self.steps * self.batch_size


CURVES = {  # what share of the way from its start to its end a ratio has gone, at a share of the run
    "constant": lambda share: 0.0,
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}


def mask_phases(
    ratios,
    pairs,
    batch_size,
    schedule=None,
    *,
    start=0.75,
    end=0.0,
    buckets=4,
    name="mask_ratio",
    tokens=None,
    **settings,
) -> list[Phase]:
    """Phases in which the mask ratio changes while one learning-rate curve runs on over all of them.

        flipkit.mask_phases("cosine", 12_800_000_000, 65_536, schedule, start=0.75, end=0.0, buckets=4)

    Each phase is one compiled program; neighbours that keep equally many tokens become one phase.

    Args:
        ratios: "constant" (`start` throughout), "linear" or "cosine" from `start`, which the first
            bucket has, to `end`, which the last has; or the steps themselves, a list of ratios for equal
            shares of the pairs: `[0.5] * 9 + [0.0]` leaves the last tenth unmasked.
        pairs, batch_size: of all phases together; each has whole batches.
        schedule: learning rate over all of them, as in `flipkit.Phase`.
        start, end: ratios, in [0, 1).
        buckets: how many ratios a curve is cut into.
        name: which ratio it is: "mask_ratio" or "text_mask_ratio".
        tokens: how many a picture or a text has; None takes only equal ratios for keeping equally many.
        settings: of `flipkit.Phase`, for all phases.
    """
    if isinstance(ratios, str):
        if ratios not in CURVES:
            raise UnknownName(f"Unknown ratios: {ratios!r}. {nearest(ratios, CURVES)}")
        last = max(_whole("buckets", buckets) - 1, 1)
        shares = [CURVES[ratios](i / last) for i in range(buckets)]
        ratios = [start + (end - start) * share for share in shares]
    if name not in ("mask_ratio", "text_mask_ratio"):
        hint = nearest(name, ("mask_ratio", "text_mask_ratio"))
        raise UnknownName(f"Unknown ratio: {name!r}. {hint}")
    schedule, batch_size = schedules.get(schedule), _whole("batch_size", batch_size)
    steps = _whole("pairs", pairs) // batch_size
    if not 0 < len(ratios) <= steps:
        raise ConfigurationError(
            f"Expected from 1 to {steps:,} ratios, one a step at most. Received: {len(ratios)} ratios "
            f"for {pairs:,} pairs in batches of {batch_size:,}"
        )
    kept = [kept_count(tokens, ratio) if tokens else ratio for ratio in ratios]
    firsts = [i for i in range(len(kept)) if i == 0 or kept[i] != kept[i - 1]]
    bounds = [steps * i // len(kept) * batch_size for i in (*firsts, len(kept))]  # in samples
    phases = []
    for i, (before, after) in zip(firsts, itertools.pairwise(bounds), strict=True):
        whole = (before, after) == (0, bounds[-1])
        rate = schedule if whole or schedule is None else Stretch(schedule, before, bounds[-1])
        phases.append(Phase(after - before, batch_size, rate, **{name: ratios[i]}, **settings))
    return phases


def _whole(name, value, least=1):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value) or value < least:
        raise ConfigurationError(
            f"Expected a whole number of at least {least}. Received: {name}={value!r}"
        )
    return int(value)


@register
class Run(Configurable):
    """A training run as a description: what a recipe returns.

    Its Keras objects are never trained. `start` makes each of them anew from its config, inside the
    distribution's scope, so that a run can be changed, written down and started again.

    Args:
        model: `flipkit.FLIP`, or `flipkit.Classifier` on labelled pictures.
        data: a dataset, its name, or a pattern of tar shards.
        feed: `flipkit.Feed`, how samples become batches.
        optimizer: a name or an object; its learning rate comes from the phases' schedules.
        phases: list of `flipkit.Phase`, in order.
        loss: a name or an object; None is the model's own: "contrastive" for a FLIP.
        evaluators: {name: evaluator}, such as `flipkit.ZeroShot`, run every `evaluate_every` steps
            and at the end of each phase. One with a method `check(model)` is asked before the first
            step: it raises what calling it would certainly raise.
        init: a path that `flipkit.load_pretrained` knows: the model begins with the weights there, its
            learned positions resampled to the model's grid and its patch embedding to the patch size;
            None draws them. A classifier takes the image tower alone. A run that goes on from a
            checkpoint needs it no more.
        seed: int: initial weights, masks, dropout, order and crops are functions of it.
        distribution: None or "data_parallel".
        log_every, checkpoint_every, evaluate_every: steps; 0 is only at the end. The latter two are
            rounded up to a multiple of the first.
    """

    def __init__(
        self,
        model,
        *,
        data=None,
        feed=None,
        optimizer="adamw",
        phases=(),
        loss=None,
        evaluators=None,
        init=None,
        seed=0,
        distribution=None,
        log_every=20,
        checkpoint_every=500,
        evaluate_every=0,
    ):
        self.model, self.data = model, datasets.get(data)
        self.feed = feed or Feed()
        self.optimizer = optimizers.get(optimizer)
        self.loss = losses.get(loss or getattr(model, "default_loss", None))
        self.phases, self.evaluators = list(phases), dict(evaluators or {})
        self.init = str(init) if isinstance(init, os.PathLike) else init
        if not isinstance(self.init, (str, type(None))):
            raise ConfigurationError(f"Expected a path or None. Received: {init=}")
        self.seed, self.distribution = seed, distribution
        layouts.get(distribution)  # an unknown name is refused here
        self.log_every = _whole("log_every", log_every)
        self.checkpoint_every = _whole("checkpoint_every", checkpoint_every, least=0)
        self.evaluate_every = _whole("evaluate_every", evaluate_every, least=0)
        if not self.phases:
            raise ConfigurationError("A run needs at least one phase: phases=[flipkit.Phase(...)]")
        kinds = [("model", model, (FLIP, Classifier)), ("feed", self.feed, (Feed,))]
        for name, value, kind in [*kinds, *(("phases", phase, (Phase,)) for phase in self.phases)]:
            if not isinstance(value, kind):
                known = " or a ".join(cls.__name__ for cls in kind)
                raise ConfigurationError(f"Expected a {known}. Received: {name}={value!r}")
        for index, phase in enumerate(self.phases):
            for name in PHASE_SETTINGS:
                if getattr(phase, name) is not None and not hasattr(model, name):
                    raise ConfigurationError(
                        f"A {type(model).__name__} has no {name}. Received: "
                        f"phases.{index}.{name}={getattr(phase, name)!r}"
                    )
            if phase.image_size is not None:
                checked_size(phase.image_size, model.image)

    def get_config(self):
        config = super().get_config()
        for state in ("build_config", "compile_config"):  # a description has no weights
            config["model"].pop(state, None)
        config["optimizer"]["config"].pop("name", None)  # Keras numbers them: sgd, sgd_1, ...
        return config

    # Description --------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def count_data(self) -> int:
        """How many samples there are to train on; raises if there are none, or no data at all."""
        if self.data is None:
            raise ConfigurationError(
                "No data to train on: set data.path='/data/laion400m/*.tar' (tar shards) or "
                "data=captioned_shapes (built in)."
            )
        return len(self.data)

    def with_override(self, path: str, value) -> "Run":
        """A copy with the argument at a dotted `path` changed, such as `model.masker.block`."""
        return self.with_overrides({path: value})

    def with_overrides(self, values: dict[str, object]) -> "Run":
        """A copy with the arguments at dotted paths changed: {path: value}, in this order.

        Only arguments at the paths' heads are rebuilt from their configs; the others stay. What is
        below one head changes together: a width may come before the heads that divide it.

        Raises:
            UnknownName: no such path; the nearest known name is told.
            ConfigurationError: a value has the wrong type, or its owner refuses it.
        """
        arguments = {name: getattr(self, name) for name in self.get_config()}
        trees = {}  # head -> its config, as far as it is changed
        for path, value in values.items():
            head, *rest = path.split(".")
            if head not in arguments:
                known = {**arguments, **self.paths()}
                raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, arguments)}")
            with _refusing({path: value}):
                if not rest:
                    arguments[head] = as_like(value, [arguments[head]], path)
                    run = Run(**arguments)  # makes components of names
                    arguments = {name: getattr(run, name) for name in arguments}
                    trees.pop(head, None)
                    continue
                tree = trees.get(head) or registry.serialize(arguments[head])
                try:
                    _set(tree, rest, value, path)
                except UnknownName:
                    # What was set by name a moment ago has arguments only once it is made.
                    tree = registry.serialize(registry.deserialize(tree))
                    _set(tree, rest, value, path)
                trees[head] = tree
        for head, tree in trees.items():
            with _refusing({p: v for p, v in values.items() if p.split(".")[0] == head}):
                arguments[head] = registry.deserialize(tree)
        with _refusing(values):
            return Run(**arguments)

    def paths(self) -> dict[str, object]:
        """Everything that can be overridden: {dotted path: value}, components as their class."""
        return dict(_flatten(self.get_config()))

    # Training -----------------------------------------------------------------------------------

    def start(
        self,
        workdir=None,
        *,
        recipe=None,
        say: Callable[[str], None] | None = None,
        pause: Callable[[int], None] | None = None,
    ):
        """Trains, and returns the model; goes on from the newest checkpoint in `workdir`.

        Args:
            workdir: folder for `run.json`, `metrics.jsonl`, checkpoints, `model.keras` and pictures,
                of the curves and of what each phase's mask keeps; None keeps nothing.
            recipe: the recipe's name, for the records.
            say: called with lines of progress; None is silent.
            pause: called with the step when a phase's program is compiled and after each logging
                window, when no step is on its way; the run goes on when it returns. A caller that
                asks for it shows the progress itself.

        Raises:
            ConfigurationError: another backend than JAX, or a workdir that holds another run.
            DataError: the data can't be used.
        """
        _require_jax()
        say = say or (lambda line: None)
        with _distributed(self.distribution):
            run = self._anew()
            journal = Journal(workdir, run.record(recipe), say, shows_progress=pause is None)
            try:
                return run._train(journal, say, pause)
            finally:
                journal.close()

    def throughput(
        self, seconds=5.0, rounds=5, pause: Callable[[float], None] | None = None
    ) -> float:
        """Pairs per second of the whole run, the mean over `rounds` windows that take `seconds` together.

        A phase has its share of the rounds, at least three. Trains a model that is thrown away.

        Args:
            pause: called when a phase's program is compiled and after each round, with the share of
                the rounds that is done, from 0 to 1, so that several runs can be measured in turns.
        """
        _require_jax()
        samples = sum(phase.samples for phase in self.phases)
        counts = [max(3, round(rounds * phase.samples / samples)) for phase in self.phases]
        spent = 0.0
        with _distributed(self.distribution):
            run = self._anew()
            batches = run._prepare(Journal(None, {}))
            for index, (phase, count) in enumerate(zip(run.phases, counts, strict=True)):
                run._enter(index, None)
                data = batches(index).from_step()
                fit = functools.partial(run.model.fit, data, verbose=0)
                fit(steps_per_epoch=1)  # compiles the program
                callbacks = []
                if pause is not None:
                    done, total = sum(counts[:index]), sum(counts)
                    told = functools.partial(lambda step, total: pause(step / total), total=total)
                    told(done)
                    callbacks.append(_Pause(told, done, total, 1))
                (rate,) = fit(steps_per_epoch=2).history["pairs_per_second"]
                steps = max(1, round(seconds / rounds * rate / phase.batch_size))
                rates = fit(steps_per_epoch=steps, epochs=count, callbacks=callbacks).history
                data.close()
                spent += phase.samples / statistics.harmonic_mean(rates["pairs_per_second"])
        return samples / spent

    def _anew(self):
        """The same run with every object made again, its model seeded."""
        run = Run.from_config(self.get_config())
        if run.model.seed is None:
            run.model.seed = run.seed
        return run

    def _prepare(self, journal, source=None):
        """Opens the data, readies tokenizer and model; returns phase index -> its batches.

        `source` is the model that the weights come from.
        """
        self.count_data()  # says early and clearly what is wrong with the data
        if self.model.reads == "text" and source is not None:
            initial.take_tokenizer(self.model, source)
        check_all(self.model, self.evaluators)
        if self.model.reads == "text":
            train_tokenizer(self.model, self.data, journal)

        def batches(index):
            return self.feed.open(
                self.data,
                self.model,
                self.phases[index].batch_size,
                seed=self.seed,
                first=sum(phase.samples for phase in self.phases[:index]),
                image_size=self._told(index).get("image_size"),
            )

        for index in range(len(self.phases)):
            batches(index)  # says what is wrong with any phase before there are weights
        self.model.build()
        if source is not None:
            initial.take_weights(self.model, source, self.init)
        known = [canonical(variable.path) for variable in self.model.variables]
        for index, phase in enumerate(self.phases):
            select(phase.frozen or (), known, role=f"phases.{index}.frozen")
        return batches

    def _source(self, say):
        """The model whose weights the run begins with, or None."""
        if self.init is None:
            return None
        source = weights.load_pretrained(self.init)
        say(f"Weights from {self.init}.")
        for difference in initial.differing_settings(self.model, source):
            say(f"Another setting than those weights were made with: {difference}")
        return source

    def _enter(self, index, previous):
        """Readies the model for phase `index`; `previous` is the optimizer of the one before."""
        phase = self.phases[index]
        for name, setting in self._told(index).items():
            setattr(self.model, name, setting)
        config = self.optimizer.get_config()
        if phase.schedule is not None:
            start = self._steps_of_optimizer(index)
            config["learning_rate"] = phase.schedule.bind(phase.batch_size, phase.samples, start)
        optimizer = type(self.optimizer).from_config(registry.serialize(config))
        self.model.compile(optimizer, loss=self.loss)
        optimizer.build(self.model.trainable_variables)
        if previous is not None and phase.optimizer == "kept":
            optimizers.take_moments(optimizer, previous, self.model.trainable_variables)

    def _told(self, index):
        """What the phases up to `index` have said of the model, {name: setting}: the last word holds."""
        told = [
            (name, getattr(p, name)) for p in self.phases[: index + 1] for name in PHASE_SETTINGS
        ]
        return {name: setting for name, setting in told if setting is not None}

    def _steps_of_optimizer(self, index):
        """How many steps the optimizer of phase `index` has behind it when the phase begins.

        Counted from the description: a run that goes on within the phase knows no optimizer before.
        """
        steps = 0
        for before, phase in itertools.pairwise(self.phases[: index + 1]):
            steps = steps + before.steps if phase.optimizer == "kept" else 0
        return steps

    def _train(self, journal, say, pause):
        folder = journal.folder
        with Checkpoints(folder / "checkpoints") if folder else contextlib.nullcontext() as saved:
            position = (saved and saved.position()) or {"phase": 0, "step": 0}
            done, optimizer = position["step"], None
            source = None if done else self._source(say)
            batches = self._prepare(journal, source)
            del source  # its weights are copied
            say(f"Resuming at step {done:,} of {self.steps:,}." if done else "Starting at step 0.")
            journal.rewind(done)
            if not done:
                journal.begin(self.model)
            for index in range(position["phase"], len(self.phases)):
                self._enter(index, optimizer)
                if done and index == position["phase"]:
                    saved.restore(self.model)
                    self._settle(position, journal)
                before = sum(phase.steps for phase in self.phases[:index])
                self._fit(index, max(0, done - before), before, batches, saved, journal, pause)
                optimizer = self.model.optimizer
        # A finished run's weights are the averages, where the optimizer keeps them.
        optimizers.take_averages(self.model)
        journal.finish(self.model)
        return self.model

    def _settle(self, position, journal):
        """Evaluates and records the checkpoint's window, if the run stopped before it had.

        A checkpoint comes before the evaluation of its step, which may take long, or fail.
        """
        step, owed = position["step"], position.get("window")
        if owed is None or journal.last.get("step", 0) >= step:
            return
        phase, logs = self.phases[position["phase"]], dict(owed["logs"])
        within = step - sum(phase.steps for phase in self.phases[: position["phase"]])
        epoch = -(-within // self.log_every) - 1
        evaluate = self._evaluate()
        evaluate.set_model(self.model)
        evaluate.set_params({"epochs": epoch + 1 if within == phase.steps else math.inf})
        evaluate.on_epoch_end(epoch, logs)
        keep = journal.callback(self, position["phase"], step, batches=None)
        keep.set_model(self.model)
        journal.say(report.line(keep.record(logs, owed["rejects"]), self.steps))

    def _evaluate(self):
        """The callback that evaluates every so many windows."""
        return Evaluate(self.evaluators, -(-self.evaluate_every // self.log_every), checked=True)

    def _fit(self, index, done, before, batches, saved, journal, pause):
        phase, window = self.phases[index], self.log_every
        if done >= phase.steps:
            return
        # Keras would put the averages in the weights' place after every `fit`: the next phase, and a
        # run that goes on, train from the weights themselves.
        self.model.optimizer.finalize_variable_values = lambda variables: None
        opened = batches(index)
        if not done:
            journal.show_masks(self.model, opened, index)
        data = opened.from_step(done)
        callbacks = [_StopAt(phase.steps - done)]
        if saved:  # first of all: an evaluation may fail
            every = -(-self.checkpoint_every // window)
            callbacks.append(_Save(saved, index, before + done, every, opened))
        callbacks += [self._evaluate(), journal.callback(self, index, before + done, opened)]
        if pause is not None:
            callbacks.append(_Pause(pause, before, before + phase.steps, window, done))
        try:
            self.model.fit(
                data,
                steps_per_epoch=window,
                # Windows are numbered from the phase's start, so that what comes every so many of
                # them comes at the same steps in a run that goes on.
                initial_epoch=done // window,
                epochs=done // window + -(-(phase.steps - done) // window),
                callbacks=callbacks,
                verbose=0,
            )
        finally:
            data.close()  # ends its threads and workers
        opened.check(final=True)

    def record(self, recipe=None) -> dict:
        """What `run.json` holds: the run as it is, and the versions it ran with."""
        packages = ("flipkit", "keras", "jax", "jaxlib", "grain", "orbax-checkpoint", "numpy")
        versions = {name: importlib.metadata.version(name) for name in packages}
        return {
            "recipe": recipe,
            "run": json.loads(json.dumps(self.get_config())),
            "versions": versions,
            "plugins": plugins.distributions(),
        }


def train_tokenizer(model, data, journal=None):
    """Gives the model's tokenizer a vocabulary, if it has none, learned from the captions."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigurationError("A run needs a tokenizer: FLIP(..., tokenizer='wordpiece')")
    folder = journal.folder / "tokenizer" if journal is not None and journal.folder else None
    if not tokenizer.trained and folder is not None and folder.is_dir():
        tokenizer.load_assets(folder)
    if not tokenizer.trained:
        step = max(1, len(data) // TOKENIZER_TEXTS)
        texts = (_texts(data, i) for i in range(0, len(data), step))
        tokenizer.train(itertools.chain.from_iterable(texts), model.text.vocab)
    if folder is not None and not folder.is_dir():
        part = folder.with_name("tokenizer.part")  # a kill leaves no half of it
        part.mkdir(parents=True, exist_ok=True)
        tokenizer.save_assets(part)
        part.rename(folder)


def _texts(data, i):
    """The texts of sample `i`; none of a bad one, which the feed will replace and record."""
    try:
        return data.texts(i)
    except BadSample:
        return []


class _StopAt(keras.callbacks.Callback):
    """Ends `fit` after so many steps, also inside a window."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.stop_training = True


class _Save(keras.callbacks.Callback):
    """Saves a checkpoint every so many windows and at the end of the phase.

    With it goes what the window's row of metrics is made of: a run that stops before the row is written
    writes it when it goes on.
    """

    def __init__(self, checkpoints, phase, step, every, batches):
        super().__init__()
        self.checkpoints, self.phase, self.step, self.every = checkpoints, phase, step, every
        self.batches, self.told = batches, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1

    def on_epoch_end(self, epoch, logs: Any = None):
        rejects = self.batches.rejects[self.told :]
        self.told = len(self.batches.rejects)
        last = epoch + 1 == self.params["epochs"]
        if last or (self.every and (epoch + 1) % self.every == 0):
            window = {"logs": {n: float(v) for n, v in logs.items()}, "rejects": rejects}
            position = {"phase": self.phase, "step": self.step, "time": time.time()}
            self.checkpoints.save(self.step, self.model, {**position, "window": window})


class _Pause(keras.callbacks.Callback):
    """Calls `pause` with the step, when a program is compiled and after each window.

    Comes last: all else of the window is done.
    """

    def __init__(self, pause, before, last, window, done=0):
        super().__init__()
        self.pause, self.before, self.last, self.window = pause, before, last, window
        self.first = before + done + 1

    def on_train_begin(self, logs=None):
        self.model.meter.compiled = lambda: self.pause(self.first)

    def on_epoch_end(self, epoch, logs=None):
        self.pause(min(self.before + (epoch + 1) * self.window, self.last))


@contextlib.contextmanager
def _distributed(identifier):
    layouts.realise(layouts.get(identifier))
    try:
        yield
    finally:
        layouts.realise(None)


def _require_jax():
    if keras.backend.backend() != "jax":
        raise ConfigurationError(
            f"A run needs Keras's JAX backend; this process uses {keras.backend.backend()!r}. "
            "Set KERAS_BACKEND=jax."
        )


# Paths into a run's config ----------------------------------------------------------------------


@contextlib.contextmanager
def _refusing(values):
    """Turns what goes wrong inside into an error that says which values can't be set, and why."""
    try:
        yield
    except FlipkitError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        # Keras wraps what a constructor raises, flipkit's own errors too, into pages of config.
        reason = str(problem).rpartition("Exception encountered: ")[2].strip()
        told = ", ".join(f"{path}={value!r}" for path, value in values.items())
        raise ConfigurationError(f"Can't set {told}. {reason}") from problem


def _children(node):
    """The settable parts of a config node: its dict or list, or None for a leaf."""
    if registry.is_serialized(node):
        return node["config"]
    return node if isinstance(node, (dict, list)) else None


def _key(children, part, path, known):
    """`part` as a key of `children`; `known` are the paths that one which isn't may have meant."""
    if isinstance(children, list):
        if part.lstrip("-").isdigit() and -len(children) <= int(part) < len(children):
            return int(part)
        places = map(str, range(len(children)))
        raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, places)}")
    if children is None or part not in children:
        raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, children or ())}")
    return part


def _set(tree, parts, value, path):
    known = [path for path, _ in _flatten(tree, f"{path.partition('.')[0]}.")]
    for part in parts[:-1]:
        children = _children(tree)
        tree = children[_key(children, part, path, known)]
    children = _children(tree)
    key = _key(children, parts[-1], path, known)
    default, annotation = _parameter(tree, key)
    children[key] = as_like(value, [children[key], default], path, annotation)


def _parameter(node, key):
    """The default, or None, and the annotation that `key` has in the component that `node` describes."""
    if not registry.is_serialized(node):
        return None, None
    owner = keras.saving.get_registered_object(node["registered_name"]) or object
    parameter = inspect.signature(owner).parameters.get(key)
    if parameter is None:
        return None, None
    return None if parameter.default is parameter.empty else parameter.default, parameter.annotation


def _flatten(node, prefix=""):
    children = _children(node)
    if registry.is_serialized(node) and prefix:
        yield prefix.rstrip("."), node["class_name"]
    if not children:
        if prefix and not registry.is_serialized(node):
            yield prefix.rstrip("."), node
        return
    items = children.items() if isinstance(children, dict) else enumerate(children)
    for key, child in items:
        yield from _flatten(child, f"{prefix}{key}.")
