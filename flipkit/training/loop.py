"""The training loop: a run's objects made anew, trained phase by phase. It reads a run; it imports none."""

import contextlib
import functools
import itertools
import math
import statistics
import time
from typing import Any

import keras

from flipkit import distribution, failures, files, hosts, optimizers, position, weights
from flipkit.callbacks import check_all, evaluate_all
from flipkit.errors import BadSample, ConfigurationError
from flipkit.paths import canonical, select
from flipkit.records import messages, progress
from flipkit.records.checkpoints import Checkpoints
from flipkit.records.journal import Journal
from flipkit.training.phase import compile_phase, model_settings
from flipkit.weights import initial

TOKENIZER_TEXTS = 50_000  # captions that an untrained tokenizer learns from


def train(description, workdir=None, *, recipe=None, say=None, pause=None):
    """Trains a run and returns its model: see `flipkit.Run.start`."""
    say = say if say and hosts.is_first() else lambda line: None
    with anew(description) as run:
        journal = Journal(workdir, run.record(recipe), say)
        try:
            return Loop(run, journal, say, pause).train()
        finally:
            journal.close()


def throughput(description, seconds, rounds, pause=None) -> float:
    """Pairs per second of a run: see `flipkit.Run.throughput`."""
    samples = sum(phase.samples for phase in description.phases)
    counts = [max(3, round(rounds * phase.samples / samples)) for phase in description.phases]
    spent = 0.0
    with anew(description) as run:
        loop = Loop(run, Journal(None, {}))
        loop.prepare()
        for index, (phase, count) in enumerate(zip(run.phases, counts, strict=True)):
            loop.enter(index)
            data = loop.batches(index).from_step()
            fit = functools.partial(run.model.fit, data, verbose=0)
            fit(steps_per_epoch=1)  # compiles the program
            callbacks = []
            if pause is not None:
                done, total = sum(counts[:index]), sum(counts)
                pause(done / total)
                callbacks.append(
                    keras.callbacks.LambdaCallback(
                        on_epoch_end=lambda epoch, logs, done=done, total=total: pause(
                            (done + epoch + 1) / total
                        )
                    )
                )
            (rate,) = fit(steps_per_epoch=2).history["pairs_per_second"]
            steps = max(1, round(seconds / rounds * rate / phase.batch_size))
            rates = fit(steps_per_epoch=steps, epochs=count, callbacks=callbacks).history
            data.close()
            spent += phase.samples / statistics.harmonic_mean(rates["pairs_per_second"])
    return samples / spent


@contextlib.contextmanager
def anew(description):
    """The same run with every object made again, its model seeded, inside its distribution's scope."""
    if keras.backend.backend() != "jax":
        raise ConfigurationError(
            f"A run needs Keras's JAX backend; this process uses {keras.backend.backend()!r}. "
            "Set KERAS_BACKEND=jax."
        )
    if hosts.count() > 1 and description.distribution is None:
        raise ConfigurationError(
            f"A run on {hosts.count()} hosts needs a distribution. Set distribution=data_parallel, or "
            "fully_sharded. Received: distribution=None"
        )
    # It starts the JAX backend, and comes before any object of Keras.
    keras.distribution.set_distribution(
        distribution.make(description.distribution, description.mesh)
    )
    try:
        yield description.anew()
    finally:
        keras.distribution.set_distribution(None)


class Loop:
    """Trains one run.

    Args:
        run: a run whose objects were made for this loop.
        journal: `Journal`.
        say: called with lines of progress.
        pause: as in `flipkit.Run.start`; without one, a progress bar is drawn.
    """

    def __init__(self, run, journal, say=lambda line: None, pause=None):
        self.run, self.journal, self.say, self.pause = run, journal, say, pause
        self.saved: Checkpoints | None = None

    # Getting ready ------------------------------------------------------------------------------

    def prepare(self, source=None):
        """Opens the data, readies tokenizer and model.

        Args:
            source: the model whose weights to take; None draws them.
        """
        run, model = self.run, self.run.model
        run.count_data()  # raises early for bad data
        if model.reads == "text" and source is not None:
            initial.take_tokenizer(model, source)
        check_all(model, run.evaluators)
        if model.reads == "text":
            folder = self.journal.folder
            train_tokenizer(model, run.data, folder and folder / "tokenizer")
        spread = keras.distribution.distribution()
        for index, phase in enumerate(run.phases):  # a bad one raises before there are weights
            if spread is not None:
                spread.check_batch(phase.batch_size)
            self.batches(index)
        model.build()
        if source is not None:
            initial.take_weights(model, source, run.init)
        known = [canonical(variable.path) for variable in model.variables]
        for index, phase in enumerate(run.phases):
            select(phase.frozen or (), known, role=f"phases.{index}.frozen")

    def batches(self, index):
        """The batches of phase `index`."""
        run, spread = self.run, keras.distribution.distribution()
        process, processes = (0, 1) if spread is None else spread.share()
        return run.feed.open(
            run.data,
            run.model,
            run.phases[index].batch_size,
            seed=run.seed,
            first=position.begin(run.phases, index).sample,
            image_size=model_settings(run.phases, index).get("image_size"),
            process=process,
            processes=processes,
        )

    def enter(self, index, previous=None):
        """Readies the model for phase `index`; `previous` is the optimizer of the one before."""
        optimizer, variables = compile_phase(self.run, index), self.run.model.trainable_variables
        optimizer.build(variables)
        optimizers.keep_weights(optimizer)  # the next phase, and a resumed run, train on from them
        if previous is not None and self.run.phases[index].optimizer == "kept":
            optimizers.take_moments(optimizer, previous, variables)

    def _source(self):
        """The model whose weights the run begins with, or None."""
        if self.run.init is None:
            return None
        source = weights.load_any(self.run.init)
        self.say(f"Weights from {self.run.init}.")
        for difference in initial.differing_settings(self.run.model, source):
            self.say(f"Another setting than those weights were made with: {difference}")
        return source

    # Training -----------------------------------------------------------------------------------

    def train(self):
        """Trains all phases, or those that are left, and returns the model."""
        run, journal = self.run, self.journal
        folder = journal.folder
        with Checkpoints(folder / "checkpoints") if folder else contextlib.nullcontext() as saved:
            self.saved = saved
            checkpoint = (saved and saved.position()) or {"step": 0}
            here = run.position(checkpoint["step"])
            self.prepare(None if here.step else self._source())
            self.say(
                f"Resuming at step {here.step:,} of {run.steps:,}."
                if here.step
                else "Starting at step 0."
            )
            journal.rewind(here.step)
            if not here.step:
                journal.begin(run.model)
            optimizer = None
            for index in range(here.phase, len(run.phases)):
                self.enter(index, optimizer)
                if index == here.phase:
                    self._say_held()
                done = 0
                if here.step and index == here.phase:
                    saved.restore(run.model)
                    self._settle(here, checkpoint.get("window"))
                    done = here.step_in_phase
                if done < run.phases[index].steps:
                    self._fit(index, done)
                optimizer = run.model.optimizer
        # A finished run's weights are the averages, where the optimizer keeps them.
        optimizers.take_averages(run.model)
        journal.finish(run.model)
        return run.model

    def _say_held(self):
        spread = keras.distribution.distribution()
        if spread is not None:
            model = self.run.model
            held = spread.held([*model.variables, *model.optimizer.variables])
            size, device, copied = (f"{n / 2**20:,.1f} MiB" for n in held.values())
            self.say(
                f"Weights and optimizer: {size}. Each of {math.prod(spread.parts)} devices has {device}, "
                f"and of that {copied} are on all of them."
            )

    def _settle(self, here, window):
        """Evaluates and records the checkpoint's window, if the run stopped before that.

        A checkpoint comes before the evaluation of its step, which may take long or raise.
        """
        if window is not None and self.journal.last.get("step", 0) < here.step:
            self.say(self.end_window(here, dict(window["logs"]), window["rejects"]))

    def end_window(self, here, logs, rejects) -> str:
        """Evaluates if it is due, and writes the window's row; returns it as a line.

        Args:
            here: `Position` at the window's end.
            logs: the logs of `fit`.
            rejects: bad samples of the window, (slot, index, reason).
        """
        run = self.run
        if self.due(here, run.evaluate_every):
            logs.update(evaluate_all(run.model, run.evaluators))
        rate = float(run.model.optimizer.learning_rate)
        row = self.journal.record(run.phases, here, {**logs, "learning_rate": rate}, rejects)
        return messages.line(row, run.steps)

    def due(self, here, every) -> bool:
        """Whether `here` is a multiple of `every` steps, rounded up to whole windows.

        Windows are counted from the phase's start, so that a resumed run has them at the same steps.
        """
        if here.step_in_phase == self.run.phases[here.phase].steps:
            return True
        windows, length = -(-every // self.run.log_every), self.run.log_every
        return bool(every) and -(-here.step_in_phase // length) % windows == 0

    def _fit(self, index, done):
        run, window = self.run, self.run.log_every
        phase, opened = run.phases[index], self.batches(index)
        if not done:
            self.journal.show_masks(run.model, opened, index)
        data = opened.from_step(done)
        windows = _Windows(self, index, done, opened)
        try:
            run.model.fit(
                data,
                steps_per_epoch=window,
                initial_epoch=done // window,
                epochs=done // window + -(-(phase.steps - done) // window),
                callbacks=[windows],
                verbose=0,
            )
        except RuntimeError as problem:  # of which JAX's errors are
            if not failures.is_memory(problem):
                raise
            raise ConfigurationError(_does_not_fit(index, phase, problem)) from problem
        finally:
            data.close()  # ends its threads and workers
        opened.check(final=True)


class _Windows(keras.callbacks.Callback):
    """The callback of a phase: what happens between its steps, in one order.

    After each window of steps it saves a checkpoint and calls evaluators if they are due, writes a row of
    metrics, and calls `pause`. The checkpoint comes first, with the values of the row: an evaluation may
    take long, or raise, and a resumed run makes up for it.
    """

    def __init__(self, loop, index, done, batches):
        super().__init__()
        self.loop, self.run, self.batches = loop, loop.run, batches
        self.begin = position.begin(self.run.phases, index)
        self.last = self.begin.step + self.run.phases[index].steps
        self.step, self.reported = self.begin.step + done, 0
        self.bar = progress.display(loop.pause is None and hosts.is_first())

    def on_train_begin(self, logs=None):
        self.bar.start()
        self.task = self.bar.add_task("compiling", total=self.run.steps, completed=self.step)
        self.meter, first = self.model.meter, self.step + 1
        if self.loop.pause is not None:
            self.meter.compiled = lambda: self.loop.pause(first)

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.bar.update(self.task, completed=self.step)
        if self.step == self.last:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs: Any = None):
        loop, here = self.loop, self.run.position(self.step)
        rejects = [r for own in hosts.gather(self.batches.rejects[self.reported :]) for r in own]
        self.reported = len(self.batches.rejects)
        if loop.saved is not None and loop.due(here, self.run.checkpoint_every):
            window = {"logs": {n: float(v) for n, v in logs.items()}, "rejects": rejects}
            place = {"phase": here.phase, "step": here.step, "time": time.time()}
            loop.saved.save(here.step, self.model, {**place, "window": window})
        line = loop.end_window(here, logs, rejects)
        # stdout and stderr may be one terminal: stop the bar while the line is printed.
        self.bar.stop()
        loop.say(line)
        self.bar.update(self.task, description=f"step {here.step:,}/{self.run.steps:,}")
        self.bar.start()
        if loop.pause is not None:
            loop.pause(here.step)

    def on_train_end(self, logs=None):
        self.loop.journal.programs[self.begin.phase] = self.meter.programs
        self.bar.stop()


def _does_not_fit(index, phase, problem):
    needed = failures.memory(problem)
    size = (
        f"{needed.needed / 2**30:.1f} of {needed.limit / 2**30:.1f} GiB" if needed else "too much"
    )
    return (
        f"A step of phase {index}, {phase.batch_size:,} pairs, needs {size} memory on a device. Set "
        f"phases.{index}.microbatch, model.image.remat=block or distribution=fully_sharded; `flipkit plan "
        f"RECIPE --topology ...` says what fits. Received: {failures.first_line(problem)}"
    )


def train_tokenizer(model, data, folder=None):
    """Trains the model's tokenizer on the captions, if it has no vocabulary.

    Args:
        folder: where to keep the vocabulary, and to read it if it is there; None keeps nothing.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigurationError("A run needs a tokenizer: FLIP(..., tokenizer='wordpiece')")

    def train():
        if not tokenizer.trained and folder is not None and folder.is_dir():
            tokenizer.load_assets(folder)
        if not tokenizer.trained:
            step = max(1, len(data) // TOKENIZER_TEXTS)
            texts = (_texts(data, i) for i in range(0, len(data), step))
            tokenizer.train(itertools.chain.from_iterable(texts), model.text.vocab)
        if folder is not None and not folder.is_dir():
            with files.whole(folder) as part:
                part.mkdir()
                tokenizer.save_assets(part)

    hosts.on_first(train)
    if not hosts.is_first():
        train()  # reads what the first has written


def _texts(data, i):
    """The texts of sample `i`; [] for a bad one, which the feed will replace and record."""
    try:
        return data.texts(i)
    except BadSample:
        return []
