"""What training logs beside the loss: in-batch accuracies, logit scale, gradient norm."""

import keras
from keras import ops

from flipkit.losses import similarity

# Logged in training alone: name of the metric, and of what it is the mean of.
TRAINING = {
    "gradient_norm": "gradient_norm",
    "reconstruction_loss": "reconstruction",
    "skipped_steps": "gradient_norm",
}


class FiniteMean(keras.metrics.Mean):
    """The mean of what is finite; NaN where nothing is."""

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


class PairMetrics:
    """Means over an epoch's batches of pairs.

    `image_to_text_accuracy` is the share of images nearest to their own text among the batch's
    (`text_to_image_accuracy` the other way round), `logit_scale` the factor of the cosines,
    `gradient_norm` the gradient's global L2 norm before clipping, `reconstruction_loss` what a
    `flipkit.MAEDecoder` has left to learn. Where cosines are not finite, nothing is nearest.

    A plain object: Keras allows a built model no new metrics, and compiling comes after building.
    """

    NAMES = ("image_to_text_accuracy", "text_to_image_accuracy", "logit_scale")

    def __init__(self, more=(), optimizer=None):
        self.means = {name: keras.metrics.Mean(name=name) for name in self.NAMES}
        self.means |= of_gradients(optimizer)
        self.means |= {name: keras.metrics.Mean(name=name) for name in more}

    def update(self, y_pred, scale):
        """Takes in a batch: unit vectors `image` and `text`, in training also what else is logged."""
        # XLA computes these logits once, for the loss and for the accuracies.
        logits = similarity(y_pred["image"], y_pred["text"], scale)
        matched = ops.diagonal(logits)
        for name, axis in (("image_to_text", 1), ("text_to_image", 0)):
            right = _sound(matched >= ops.max(logits, axis=axis), logits, axis)
            self.means[f"{name}_accuracy"].update_state(right)
        self.means["logit_scale"].update_state(scale)
        for name, key in TRAINING.items():
            if key in y_pred and name in self.means:
                self.means[name].update_state(y_pred[key])


class ClassMetrics:
    """Means over an epoch's batches of labelled pictures: `accuracy` and `gradient_norm`.

    Where targets are mixed, the class with the largest share of one is the right one. A picture whose
    logits are not all finite is wrong.
    """

    def __init__(self, optimizer=None):
        self.means = {"accuracy": keras.metrics.Mean(name="accuracy"), **of_gradients(optimizer)}

    def update(self, y_pred):
        """Takes in a batch: `logits` and `target`, each (batch, classes)."""
        said, right = (ops.argmax(y_pred[name], axis=1) for name in ("logits", "target"))
        self.means["accuracy"].update_state(_sound(said == right, y_pred["logits"], axis=1))
        for name, key in TRAINING.items():
            if key in y_pred and name in self.means:
                self.means[name].update_state(y_pred[key])


def _sound(right, logits, axis):
    """1 where it is `right` and all logits along `axis` are finite, else 0: float32.

    The largest of what is not a number is the first or none, as the backend has it.
    """
    finite = ops.all(ops.isfinite(logits), axis=axis)
    return ops.cast(ops.logical_and(right, finite), "float32")
