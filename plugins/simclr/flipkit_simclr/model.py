"""SimCLR on an image tower of flipkit's or a plugin's: the whole model."""

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops


@keras.saving.register_keras_serializable(package="flipkit_simclr")
class SimCLR(flipkit.models.Trainable):
    """Image-only contrastive learning: two crops of a picture find each other among the batch's.

    Args:
        image: image encoder: a name, an object or its config.
        dim: width of the compared vectors, which two layers make of the tower's features.
        temperature: divisor of the cosines (section 5.2: 0.1).
        preprocessing, seed: as in `flipkit.FLIP`.
    """

    reads = "view"  # beside `image`, another crop of each picture
    towers = {"image": ("image", "view")}
    logged = ("view_accuracy",)

    def __init__(
        self, image="vit", dim=128, *, temperature=0.1, preprocessing=None, seed=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.image, self.dim, self.temperature = flipkit.encoders.get(image), dim, temperature
        self.preprocessing, self.seed = flipkit.preprocessing.get(preprocessing), seed
        policy = self.dtype_policy
        self.hidden = keras.layers.Dense(self.image.dim, "relu", dtype=policy, name="hidden")
        self.out = keras.layers.Dense(dim, dtype=policy, name="out")

    @classmethod
    def example(cls):
        """A tiny one, for `flipkit.testing`."""
        return cls(flipkit.ViT(16, 4, dim=16, depth=1, heads=2), dim=8)

    def build_parts(self):
        super().build_parts()
        for layer in (self.hidden, self.out):
            if not layer.built:
                layer.build((None, self.image.dim))

    def call(self, inputs, training=False):
        """{"image" and "view" of pictures} -> {"features" (batch, width), "image", "view" (batch, dim)}."""
        found = {}
        with flipkit.random.seed_scope(self.step_seed(training)):
            for name in inputs.keys() & {"image", "view"}:
                features = self.image(self.preprocessing.normalise(inputs[name]), training=training)
                found[name] = ops.cast(self.out(self.hidden(features)), "float32")
                if name == "image":
                    found["features"] = ops.cast(features, "float32")
        return found

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """NT-Xent (equation 1): the mean cross-entropy of each view's other view among all others."""
        logits, matched = self._logits(y_pred)
        return ops.mean(ops.logsumexp(logits, axis=1) - matched)

    def measure(self, y_pred):
        logits, matched = self._logits(y_pred)
        return {"view_accuracy": ops.cast(matched >= ops.max(logits, axis=1), "float32")}

    def _logits(self, y_pred):
        """Float32 (2 * batch, 2 * batch), a row for each view, and its logit with its other view."""
        x = ops.normalize(ops.concatenate([y_pred["image"], y_pred["view"]]))
        logits = ops.matmul(x, ops.transpose(x)) / self.temperature - 1e9 * ops.eye(x.shape[0])
        return logits, ops.diagonal(ops.roll(logits, x.shape[0] // 2, axis=1))

    def encode_images(self, images, batch_size=64):
        """Pictures, as in `FLIP.encode_images` -> the tower's features as unit vectors (n, width)."""
        pixels = self.preprocessing.prepare(images, self.image.image_size)
        return keras.utils.normalize(self.rows({"image": pixels}, "features", batch_size))
