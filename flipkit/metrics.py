"""What training logs beside the loss: in-batch accuracies, logit scale, gradient norm."""

import keras
from keras import ops

from flipkit.losses import similarity

# Logged in training alone: name of the metric, and of what it is the mean of.
TRAINING = {"gradient_norm": "gradient_norm", "reconstruction_loss": "reconstruction"}


class PairMetrics:
    """Means over an epoch's batches of pairs.

    `image_to_text_accuracy` is the share of images nearest to their own text among the batch's
    (`text_to_image_accuracy` the other way round), `logit_scale` the factor of the cosines,
    `gradient_norm` the gradient's global L2 norm before clipping, `reconstruction_loss` what a
    `flipkit.MAEDecoder` has left to learn.

    A plain object: Keras allows a built model no new metrics, and compiling comes after building.
    """

    NAMES = ("image_to_text_accuracy", "text_to_image_accuracy", "logit_scale", "gradient_norm")

    def __init__(self, more=()):
        self.means = {name: keras.metrics.Mean(name=name) for name in (*self.NAMES, *more)}

    def update(self, y_pred, scale):
        """Takes in a batch: unit vectors `image` and `text`, in training also what else is logged."""
        # XLA computes these logits once, for the loss and for the accuracies.
        logits = similarity(y_pred["image"], y_pred["text"], scale)
        matched = ops.diagonal(logits)
        for name, axis in (("image_to_text", 1), ("text_to_image", 0)):
            right = ops.cast(matched >= ops.max(logits, axis=axis), "float32")
            self.means[f"{name}_accuracy"].update_state(right)
        self.means["logit_scale"].update_state(scale)
        for name, key in TRAINING.items():
            if key in y_pred:
                self.means[name].update_state(y_pred[key])


class ClassMetrics:
    """Means over an epoch's batches of labelled pictures: `accuracy` and `gradient_norm`.

    Where targets are mixed, the class with the largest share of one is the right one.
    """

    def __init__(self):
        self.means = {n: keras.metrics.Mean(name=n) for n in ("accuracy", "gradient_norm")}

    def update(self, y_pred):
        """Takes in a batch: `logits` and `target`, each (batch, classes)."""
        said, right = (ops.argmax(y_pred[name], axis=1) for name in ("logits", "target"))
        self.means["accuracy"].update_state(ops.cast(said == right, "float32"))
        if "gradient_norm" in y_pred:
            self.means["gradient_norm"].update_state(y_pred["gradient_norm"])
