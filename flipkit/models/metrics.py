"""Metrics of training beside the loss: accuracies on the batch, the gradient's norm."""

import keras
from keras import ops

from flipkit.losses import pairs


class FiniteMean(keras.metrics.Mean):
    """The mean of the finite values; NaN without any."""

    def update_state(self, values, sample_weight=None):
        finite = ops.isfinite(values)
        super().update_state(ops.where(finite, values, 0.0), ops.cast(finite, "float32"))

    def result(self):
        return ops.where(self.count > 0, super().result(), float("nan"))


class Skipped(keras.metrics.Mean):
    """The share of steps whose gradient is not finite."""

    def update_state(self, values, sample_weight=None):
        super().update_state(ops.cast(ops.logical_not(ops.isfinite(values)), "float32"))


def of_gradients(optimizer) -> dict[str, keras.metrics.Metric]:
    """`gradient_norm`, the mean over the steps; beside it `skipped_steps` where the optimizer skips some.

    A `LossScaleOptimizer` leaves out a step whose gradient overflows float16, and halves its scale: such
    a step has no norm. With every other optimizer a norm that is not finite is a run that diverged.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return {
            "gradient_norm": FiniteMean(name="gradient_norm"),
            "skipped_steps": Skipped(name="skipped_steps"),
        }
    return {"gradient_norm": keras.metrics.Mean(name="gradient_norm")}


class Means:
    """Means over an epoch's batches: of the model's measures and of the gradient's norm.

    A plain object: Keras allows a built model no new metrics, and compiling comes after building.

    Args:
        names: of the model's measures.
        optimizer: the model's.

    Attributes:
        metrics: {name: Keras metric}.
    """

    def __init__(self, names=(), optimizer=None):
        self._gradients = of_gradients(optimizer)
        self.metrics = {name: keras.metrics.Mean(name=name) for name in names} | self._gradients

    def update(self, measured, gradient_norm=None) -> set[str]:
        """Adds a batch, and returns the names of the metrics that it has changed.

        Args:
            measured: {name: values}.
            gradient_norm: of the step; None in an evaluation.
        """
        if gradient_norm is not None:
            measured = measured | dict.fromkeys(self._gradients, gradient_norm)
        for name, values in measured.items():
            self.metrics[name].update_state(values)
        return {*measured}


def pair_accuracies(image, text, scale) -> dict:
    """`image_to_text_accuracy` of each image and `text_to_image_accuracy` of each text: 1.0 or 0.0.

    An image is right if its own text is the nearest of the batch's; where cosines are not finite, none is.

    Args:
        image, text: unit vectors (batch, dim), row i of one belonging to row i of the other.
        scale: factor of the cosines. XLA computes the logits of a small batch once, for the loss and for
            this.
    """
    to_text, to_image = pairs.nearest(image, text, scale)
    return {
        "image_to_text_accuracy": to_text,
        "text_to_image_accuracy": to_image,
    }


def class_accuracy(logits, target) -> dict:
    """`accuracy` of each picture, 1.0 or 0.0.

    Where targets are mixed, the class with the largest share is right. A picture whose logits are not
    all finite is wrong.

    Args:
        logits, target: (batch, classes).
    """
    guess, right = ops.argmax(logits, axis=1), ops.argmax(target, axis=1)
    return {"accuracy": sound(guess == right, logits, axis=1)}


def sound(right, logits, axis):
    """1 where it is `right` and all logits along `axis` are finite, else 0: float32.

    Backends differ in the index of the largest number among NaNs.
    """
    finite = ops.all(ops.isfinite(logits), axis=axis)
    return ops.cast(ops.logical_and(right, finite), "float32")
