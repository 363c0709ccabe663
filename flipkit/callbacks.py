"""Keras callbacks for contrastive training: throughput, and evaluations while it runs."""

import contextlib
import math
import time

import keras
from absl import logging

from flipkit import optimizers
from flipkit.errors import FlipkitError


class Throughput(keras.callbacks.Callback):
    """Adds `pairs_per_second` and `data_wait`, the share of time spent waiting, to an epoch's logs.

    It leaves out the first step of a newly compiled program. `flipkit.FLIP.fit` adds this callback.
    """

    def on_train_begin(self, logs=None):
        # Only here: touching `self.model` in a step ends JAX's asynchronous dispatch.
        self.meter = self.model.meter

    def on_epoch_begin(self, epoch, logs=None):
        self._restart()

    def on_train_batch_end(self, batch, logs=None):
        if self.meter.fresh:
            float(logs["loss"])  # waits until the step that was just compiled has run
            self.meter.fresh = False
            self.meter.compiled()
            self._restart()

    def on_epoch_end(self, epoch, logs=None):
        float(logs["loss"])  # waits for the steps still running on the device
        seconds = time.perf_counter() - self._since
        pairs = self.meter.pairs - self._pairs
        if pairs:
            logs["pairs_per_second"] = pairs / seconds
            logs["data_wait"] = (self.meter.waited - self._waited) / seconds

    def _restart(self):
        self._since, self._pairs, self._waited = (
            time.perf_counter(),
            self.meter.pairs,
            self.meter.waited,
        )


class Evaluate(keras.callbacks.Callback):
    """Adds the metrics of evaluators to the logs, every so many epochs and at the end.

    Args:
        evaluators: `{name: evaluator}`; an evaluator maps the model to `{metric: number}`, as
            `flipkit.ZeroShot` and `flipkit.Retrieval` do. Logged as `name/metric`. If it has a method
            `check(model)`, training calls that first: it raises what the evaluator would raise.
        every: epochs between evaluations; 0 is only at the end.
        checked: whether the caller has called `check` already, as a `flipkit.Run` does.
    """

    def __init__(self, evaluators, every=1, checked=False):
        super().__init__()
        self.evaluators, self.every, self.checked = evaluators, every, checked

    def on_train_begin(self, logs=None):
        if not self.checked:
            check_all(self.model, self.evaluators)

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params["epochs"]
        if last or (self.every and (epoch + 1) % self.every == 0):
            logs.update(evaluate_all(self.model, self.evaluators))


def check_all(model, evaluators):
    """Calls each evaluator's method `check`, which may reject the model and the data beforehand."""
    for name, evaluator in evaluators.items():
        if hasattr(evaluator, "check"):
            with _naming(name):
                evaluator.check(model)


def evaluate_all(model, evaluators) -> dict[str, float]:
    """`{"name/metric": number}` of every evaluator, with averaged weights where the optimizer has them.

    An infinite number becomes NaN, which no comparison takes for the best; a warning names the metric.
    """
    found = {}
    with optimizers.averaged_weights(model):
        for name, evaluator in evaluators.items():
            with _naming(name):
                metrics = evaluator(model)
            found |= {f"{name}/{metric}": value for metric, value in metrics.items()}
    lost = [name for name, value in found.items() if not math.isfinite(value)]
    if lost:
        logging.warning("Not finite, and so no result: %s", ", ".join(lost))
    return found | dict.fromkeys(lost, math.nan)


@contextlib.contextmanager
def _naming(name):
    """Puts an evaluator's name before the message of an error for the user."""
    try:
        yield
    except FlipkitError as problem:
        raise type(problem)(f"Evaluator {name!r}: {problem}") from problem
