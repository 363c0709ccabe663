"""Phase and Run: one training run as an object that can be read, changed by path, and started."""

import contextlib
import importlib.metadata
import itertools
import json
import time
from collections.abc import Callable

import keras

from flipkit import datasets, distribution, losses, optimizers, plugins, registry, schedules
from flipkit.callbacks import Evaluate
from flipkit.checkpoints import Checkpoints
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.feed import Feed
from flipkit.journal import Journal
from flipkit.registry import Configurable, register

TOKENIZER_TEXTS = 50_000  # captions that an untrained tokenizer learns from


@register
class Phase(Configurable):
    """A stretch of a run under one program.

    Args:
        pairs: image-text pairs to train on; whole batches of them are used.
        batch_size: pairs per step.
        schedule: `flipkit.Schedule` over this phase's samples; None keeps the optimizer's own rate.
        mask_ratio, text_mask_ratio: shares dropped in this phase; None leaves the model's.
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
        optimizer="kept",
    ):
        self.pairs, self.batch_size = _whole("pairs", pairs), _whole("batch_size", batch_size)
        self.schedule = schedules.get(schedule)
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.optimizer = optimizer
        if self.pairs < self.batch_size:
            raise ConfigurationError(
                f"A phase needs at least one batch. Received: pairs={pairs:,}, {batch_size=:,}"
            )
        if optimizer not in ("kept", "fresh"):
            raise ConfigurationError(f"Expected optimizer 'kept' or 'fresh'. Received: {optimizer!r}")

    @property
    def steps(self) -> int:
        """Steps of this phase."""
        return self.pairs // self.batch_size

    @property
    def samples(self) -> int:
        """Pairs that this phase uses: whole batches."""
        return self.steps * self.batch_size


def _whole(name, value):
    if value != int(value) or value < 1:
        raise ConfigurationError(f"Expected a whole number of at least 1. Received: {name}={value}")
    return int(value)


@register
class Run(Configurable):
    """A training run as a description: what a recipe returns.

    Its Keras objects are never trained. `start` makes each of them anew from its config, inside the
    distribution's scope, so that a run can be changed, written down and started again.

    Args:
        model: `flipkit.FLIP`.
        data: a dataset, its name, or a pattern of tar shards.
        feed: `flipkit.Feed`, how samples become batches.
        optimizer: a name or an object; its learning rate comes from the phases' schedules.
        phases: list of `flipkit.Phase`, in order.
        loss: a name or an object.
        evaluators: {name: evaluator}, such as `flipkit.ZeroShot`, run every `evaluate_every` steps and
            at the end of each phase.
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
        loss="contrastive",
        evaluators=None,
        seed=0,
        distribution=None,
        log_every=20,
        checkpoint_every=500,
        evaluate_every=0,
    ):
        self.model, self.data = model, datasets.get(data)
        self.feed = feed or Feed()
        self.optimizer, self.loss = optimizers.get(optimizer), losses.get(loss)
        self.phases, self.evaluators = list(phases), dict(evaluators or {})
        self.seed, self.distribution = seed, distribution
        self.log_every, self.checkpoint_every = _whole("log_every", log_every), checkpoint_every
        self.evaluate_every = evaluate_every
        if not self.phases:
            raise ConfigurationError("A run needs at least one phase: phases=[flipkit.Phase(...)]")

    def get_config(self):
        config = super().get_config()
        for state in ("build_config", "compile_config"):  # a description has no weights
            config["model"].pop(state, None)
        return config

    # Description --------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def with_override(self, path: str, value) -> "Run":
        """A copy with the argument at a dotted `path` changed, such as `model.masker.block`.

        Only the argument at the path's head is rebuilt from its config; the others stay.

        Raises:
            UnknownName: no such path; the nearest known name is told.
            ConfigurationError: the value has the wrong type, or its owner refuses it.
        """
        head, *rest = path.split(".")
        arguments = {name: getattr(self, name) for name in self.get_config()}
        if head not in arguments:
            raise UnknownName(f"Unknown: {path!r}. {nearest(head, arguments)}")
        if rest:
            tree = registry.serialize(arguments[head])
            _set(tree, rest, value, path)
            arguments[head] = registry.deserialize(tree)
        else:
            arguments[head] = _as_like(arguments[head], value, path)
        return Run(**arguments)

    def paths(self) -> dict[str, object]:
        """Everything that can be overridden: {dotted path: value}, components as their class."""
        return dict(_flatten(self.get_config()))

    # Training -----------------------------------------------------------------------------------

    def start(self, workdir=None, *, recipe=None, say: Callable[[str], None] | None = None):
        """Trains, and returns the model; goes on from the newest checkpoint in `workdir`.

        Args:
            workdir: folder for `run.json`, `metrics.jsonl`, checkpoints, `model.keras` and pictures;
                None keeps nothing.
            recipe: the recipe's name, for the records.
            say: called with lines of progress; None is silent.

        Raises:
            ConfigurationError: another backend than JAX, or a workdir that holds another run.
            DataError: the data can't be used.
        """
        _require_jax()
        say = say or (lambda line: None)
        with _distributed(self.distribution):
            run = self._anew()
            journal = Journal(workdir, run.record(recipe), say)
            try:
                return run._train(journal, say)
            finally:
                journal.close()

    def throughput(self, steps=10) -> float:
        """Pairs per second of the first phase's step with its data, measured over `steps` steps.

        Trains a model that is thrown away.
        """
        _require_jax()
        with _distributed(self.distribution):
            run = self._anew()
            batches = run._prepare(Journal(None, {}, print))
            run._enter(0, None)
            data = batches(0).from_step()
            history = run.model.fit(data, steps_per_epoch=steps + 1, verbose=0)
            data.close()
            return history.history["pairs_per_second"][-1]

    def _anew(self):
        """The same run with every object made again, its model seeded."""
        run = Run.from_config(self.get_config())
        if run.model.seed is None:
            run.model.seed = run.seed
        return run

    def _prepare(self, journal):
        """Opens the data, readies tokenizer and model; returns phase index -> its batches."""
        len(self.data)  # says early and clearly what is wrong with the data
        train_tokenizer(self.model, self.data, journal)
        self.model.build()

        def batches(index):
            phase, before = self.phases[index], self.phases[:index]
            first = sum(p.samples for p in before)
            size = phase.batch_size
            return self.feed.open(self.data, self.model, size, seed=self.seed, first=first)

        return batches

    def _enter(self, index, previous):
        """Readies the model for phase `index`; `previous` is the optimizer of the one before."""
        phase = self.phases[index]
        for name in ("mask_ratio", "text_mask_ratio"):
            if getattr(phase, name) is not None:
                setattr(self.model, name, getattr(phase, name))
        kept = previous is not None and phase.optimizer == "kept"
        config = self.optimizer.get_config()
        if phase.schedule is not None:
            start = int(previous.iterations) if kept else 0
            config["learning_rate"] = phase.schedule.bind(phase.batch_size, phase.samples, start)
        optimizer = type(self.optimizer).from_config(registry.serialize(config))
        optimizer.build(self.model.trainable_variables)
        if kept:
            for new, old in zip(optimizer.variables, previous.variables, strict=True):
                if "learning_rate" not in new.path:
                    new.assign(old)
        self.model.compile(optimizer, loss=self.loss)

    def _train(self, journal, say):
        batches = self._prepare(journal)
        with Checkpoints(journal.folder / "checkpoints") if journal.folder else contextlib.nullcontext() as saved:
            position = (saved and saved.position()) or {"phase": 0, "step": 0}
            done, optimizer = position["step"], None
            say(f"Resuming at step {done:,} of {self.steps:,}." if done else "Starting at step 0.")
            journal.rewind(done)
            for index in range(position["phase"], len(self.phases)):
                self._enter(index, optimizer)
                if done and index == position["phase"]:
                    saved.restore(self.model)
                before = sum(phase.steps for phase in self.phases[:index])
                self._fit(index, done - before if done > before else 0, before, batches, saved, journal)
                optimizer = self.model.optimizer
        journal.finish(self.model)
        return self.model

    def _fit(self, index, done, before, batches, saved, journal):
        phase, window = self.phases[index], self.log_every
        if done >= phase.steps:
            return
        opened = batches(index)
        data = opened.from_step(done)
        callbacks = [_StopAt(phase.steps - done)]
        if self.evaluators:
            callbacks.append(Evaluate(self.evaluators, -(-self.evaluate_every // window)))
        callbacks.append(journal.callback(self, index, before + done, opened))
        if saved:
            callbacks.append(_Save(saved, index, before + done, -(-self.checkpoint_every // window)))
        try:
            self.model.fit(
                data,
                steps_per_epoch=window,
                epochs=-(-(phase.steps - done) // window),
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
    """Gives the model's tokenizer a vocabulary, if it has none: learned from the data's captions."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigurationError("A run needs a tokenizer: FLIP(..., tokenizer='wordpiece')")
    folder = journal.folder / "tokenizer" if journal is not None and journal.folder else None
    if not tokenizer.trained and folder is not None and folder.is_dir():
        tokenizer.load_assets(folder)
    if not tokenizer.trained:
        step = max(1, len(data) // TOKENIZER_TEXTS)
        texts = (data.texts(i) for i in range(0, len(data), step))
        tokenizer.train(itertools.chain.from_iterable(texts), model.text.vocab)
    if folder is not None and not folder.is_dir():
        folder.mkdir(parents=True)
        tokenizer.save_assets(folder)


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
    """Saves a checkpoint every so many windows and at the end of the phase."""

    def __init__(self, checkpoints, phase, step, every):
        super().__init__()
        self.checkpoints, self.phase, self.step, self.every = checkpoints, phase, step, every
        self.windows = 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        self.windows += 1
        last = epoch + 1 == self.params["epochs"]
        if last or (self.every and self.windows % self.every == 0):
            position = {"phase": self.phase, "step": self.step, "time": time.time()}
            self.checkpoints.save(self.step, self.model, position)


@contextlib.contextmanager
def _distributed(identifier):
    distribution.realise(distribution.get(identifier))
    try:
        yield
    finally:
        distribution.realise(None)


def _require_jax():
    if keras.backend.backend() != "jax":
        raise ConfigurationError(
            f"A run needs Keras's JAX backend; this process uses {keras.backend.backend()!r}. "
            "Set KERAS_BACKEND=jax."
        )


# Paths into a run's config ----------------------------------------------------------------------


def _children(node):
    """The settable parts of a config node: its dict or list, or None for a leaf."""
    if registry.is_serialized(node):
        return node["config"]
    return node if isinstance(node, (dict, list)) else None


def _key(children, part, path):
    """`part` as a key of `children`."""
    if isinstance(children, list):
        if part.lstrip("-").isdigit() and -len(children) <= int(part) < len(children):
            return int(part)
        raise UnknownName(f"Unknown: {path!r}. {nearest(part, map(str, range(len(children))))}")
    if children is None or part not in children:
        raise UnknownName(f"Unknown: {path!r}. {nearest(part, children or ())}")
    return part


def _set(tree, parts, value, path):
    for part in parts[:-1]:
        children = _children(tree)
        tree = children[_key(children, part, path)]
    children = _children(tree)
    key = _key(children, parts[-1], path)
    children[key] = _as_like(children[key], value, path)


def _as_like(current, value, path):
    """`value` in the type of what it replaces."""
    number = isinstance(current, (int, float)) and not isinstance(current, bool)
    if number and isinstance(current, int) and isinstance(value, float) and value == int(value):
        return int(value)  # 1e6 for a count
    wrong = (
        (number and not isinstance(value, (int, float)) and value is not None)
        or (isinstance(current, bool) and not isinstance(value, bool))
        or (isinstance(current, list) and not isinstance(value, (list, tuple, str)))
    )
    if wrong:
        raise ConfigurationError(
            f"Expected a {type(current).__name__}, such as {current!r}. Received: {path}={value!r}"
        )
    return value


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
