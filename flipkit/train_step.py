"""FLIP's training step: Keras's, plus the gradient's norm, the step count and the wait for data."""
# A mixin of keras.Model, whose methods are here once for each backend.
# pyright: reportAttributeAccessIssue=false, reportRedeclaration=false

import time

import keras
from keras import ops

if keras.backend.backend() == "jax":
    import jax  # value_and_grad: Keras's JAX trainer has no hook between gradient and update


class TrainStep:
    """What `fit` does to a `flipkit.FLIP` at each step. Mixed in before `keras.Model`.

    The model has an int32 variable `step`; its `compute_metrics` finds the gradient's global L2 norm,
    before clipping, in `y_pred["gradient_norm"]` (JAX backend).
    """

    if keras.backend.backend() == "jax":

        def compute_loss_and_updates(self, trainable, non_trainable, *args, **kwargs):
            loss, (unscaled, y_pred, *updates) = super().compute_loss_and_updates(
                trainable, non_trainable, *args, **kwargs
            )
            # The metrics are updated where weights have no values any more: hand over what they need.
            weights = zip(self.trainable_variables, trainable, strict=True)
            with keras.StatelessScope(state_mapping=list(weights)):
                y_pred = {**y_pred, "scale": self.scale}
            return loss, (unscaled, y_pred, *updates)

        def train_step(self, state, data):
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


def global_norm(tensors):
    """Float32 L2 norm over all of `tensors`."""
    squares = [ops.sum(ops.square(ops.cast(t, "float32"))) for t in tensors if t is not None]
    return ops.sqrt(sum(squares))


class Meter:
    """Counts, over the life of a train function, what its steps were fed and how long they waited.

    Attributes:
        pairs: rows fed so far.
        waited: seconds spent waiting for the next batch.
        fresh: whether the program has yet to be compiled.
    """

    def __init__(self):
        self.pairs, self.waited, self.fresh = 0, 0.0, True

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
