"""What flipkit's models have in common: the training step, its meter, and `fit`."""
# A mixin of keras.Model, whose methods are here once for each backend.
# pyright: reportAttributeAccessIssue=false, reportRedeclaration=false

import inspect
import time

import keras
from keras import ops

from flipkit import registry
from flipkit.callbacks import Throughput

if keras.backend.backend() == "jax":
    import jax  # value_and_grad: Keras's JAX trainer has no hook between gradient and update


class TrainStep:
    """What `flipkit.FLIP` and `flipkit.Classifier` share: mixed in before `keras.Model`.

    The model has an int32 variable `step`, which each step counts up; its outputs are a dict, in which
    `compute_metrics` finds the gradient's global L2 norm, before clipping, as `gradient_norm`, and the
    model's `readings` (JAX backend). A `flipkit.Run` and a `flipkit.Feed` ask further:

    Attributes:
        reads: what a batch holds beside `image`: "text" or "label".
        default_loss: the loss that a run takes if it is told none.
        meter: of the train function that `fit` has made last; None before.
    """

    reads: str
    default_loss: str | None
    meter: "Meter | None" = None

    def readings(self) -> dict:
        """What `compute_metrics` wants to know of the weights, by its name in the outputs."""
        return {}

    if keras.backend.backend() == "jax":

        def compute_loss_and_updates(self, trainable, non_trainable, *args, **kwargs):
            loss, (unscaled, y_pred, *updates) = super().compute_loss_and_updates(
                trainable, non_trainable, *args, **kwargs
            )
            # The metrics are updated where weights have no values any more: hand over what they need.
            weights = zip(self.trainable_variables, trainable, strict=True)
            with keras.StatelessScope(state_mapping=list(weights)):
                y_pred = {**y_pred, **self.readings()}
            return loss, (unscaled, y_pred, *updates)

        def train_step(self, state, data):
            if self.meter is not None:
                self.meter.programs += 1  # what is jitted runs only to be compiled
            trainable, non_trainable, optimizer, metrics = state
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            loss_and_gradient = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
            (_, aux), gradient = loss_and_gradient(
                trainable,
                non_trainable,
                metrics,
                x,
                y,
                sample_weight,
                training=True,
                optimizer_variables=optimizer,
            )
            loss, y_pred, non_trainable, metrics = aux
            trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradient, trainable)
            non_trainable = [
                value + 1 if variable is self.step else value
                for variable, value in zip(self.non_trainable_variables, non_trainable, strict=True)
            ]
            y_pred = {**y_pred, "gradient_norm": global_norm(gradient)}
            logs, metrics = self._update_metrics_variables(
                metrics, loss, x, y, y_pred, sample_weight
            )
            return logs, (trainable, non_trainable, optimizer, metrics)

    else:

        def train_step(self, *args):
            logs = super().train_step(*args)
            self.step.assign_add(1)
            return logs

    def make_train_function(self, force=False):
        stale = self.train_function is None or force
        super().make_train_function(force)
        if stale and keras.backend.backend() == "jax":
            self.meter = Meter()
            self.train_function = self.meter.measured(self.train_function)

    def fit(self, x=None, *args, callbacks=None, **kwargs):
        """As `keras.Model.fit`; logs also `pairs_per_second` and `data_wait`, the share of time spent
        waiting for data (JAX backend). A Keras `CallbackList` is used as it is, without them.
        """
        if inspect.isgenerator(x):
            kwargs.setdefault("shuffle", False)  # Keras warns that it can't
        given = isinstance(callbacks, keras.callbacks.CallbackList)
        if keras.backend.backend() == "jax" and not given:
            callbacks = [Throughput(), *keras.tree.flatten(callbacks or [])]
        history = super().fit(x, *args, callbacks=callbacks, **kwargs)
        if getattr(self.optimizer, "use_ema", False):
            # Keras 3.15 has put the averages' own arrays into the weights, and the next step would
            # give each away twice.
            for variable in self.trainable_variables:
                variable.assign(ops.copy(variable))
        return history

    def compile_from_config(self, config):
        config = registry.deserialize(config)
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def get_build_config(self):
        return {"input_shape": None} if self.built else None

    def build_from_config(self, config):
        self.build()


def global_norm(tensors):
    """Float32 L2 norm over all of `tensors`."""
    squares = [ops.sum(ops.square(ops.cast(t, "float32"))) for t in tensors if t is not None]
    return ops.sqrt(sum(squares))


class Meter:
    """Counts, over the life of a train function, what its steps were fed and how long they waited.

    Attributes:
        pairs: rows fed so far.
        waited: seconds spent waiting for the next batch.
        programs: how many were compiled: one, if all batches had the same shapes.
        fresh: whether the program has yet to be compiled.
    """

    def __init__(self):
        self.pairs, self.waited, self.programs, self.fresh = 0, 0.0, 0, True

    def measured(self, train_function):
        """`train_function` with its input watched."""

        def function(state, iterator):
            return train_function(state, self._watched(iterator))

        return function

    def _watched(self, iterator):
        # A generator would swallow the StopIteration that ends Keras's epoch one batch too late.
        meter = self

        class Watched:
            def __next__(self):
                start = time.perf_counter()
                try:
                    batch = next(iterator)
                finally:
                    meter.waited += time.perf_counter() - start
                meter.pairs += len(keras.tree.flatten(batch)[0])
                return batch

        return Watched()
