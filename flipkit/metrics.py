"""What training logs beside the loss: in-batch accuracies, logit scale, gradient norm."""

import keras
from keras import ops

from flipkit.losses import similarity


class PairMetrics:
    """Means over an epoch's batches of pairs.

    `image_to_text_accuracy` is the share of images nearest to their own text among the batch's
    (`text_to_image_accuracy` the other way round), `logit_scale` the factor of the cosines,
    `gradient_norm` the gradient's global L2 norm before clipping.

    A plain object: Keras allows a built model no new metrics, and compiling comes after building.
    """

    NAMES = ("image_to_text_accuracy", "text_to_image_accuracy", "logit_scale", "gradient_norm")

    def __init__(self):
        self.means = {name: keras.metrics.Mean(name=name) for name in self.NAMES}

    def update(self, y_pred, scale):
        """Takes in a batch: unit vectors `image` and `text`, in training also `gradient_norm`."""
        # XLA computes these logits once, for the loss and for the accuracies.
        logits = similarity(y_pred["image"], y_pred["text"], scale)
        matched = ops.diagonal(logits)
        for name, axis in (("image_to_text", 1), ("text_to_image", 0)):
            right = ops.cast(matched >= ops.max(logits, axis=axis), "float32")
            self.means[f"{name}_accuracy"].update_state(right)
        self.means["logit_scale"].update_state(scale)
        if "gradient_norm" in y_pred:
            self.means["gradient_norm"].update_state(y_pred["gradient_norm"])
