"""A classifier: an image tower and a linear head, for linear probes and fine-tuning."""

from typing import Any

import keras
import numpy as np
from keras import ops

from flipkit import checks, encoders
from flipkit.errors import ConfigurationError, nearest
from flipkit.models.metrics import class_accuracy
from flipkit.models.trainable import Trainable
from flipkit.preprocessing import get as get_preprocessing
from flipkit.random import seed_scope
from flipkit.registry import register

TOWERS = ("tuned", "frozen")
HEAD_NORMS = ("batch", None)


@register
class Classifier(Trainable):
    """Pictures to classes, by an image tower and a linear head that train on labels.

    A linear probe is `tower="frozen", head_norm="batch"`, as MAE's (arXiv 2111.06377, appendix A) and
    FLIP's (Table 11); fine-tuning is the rest (Table 12). The head takes the tower's features before FLIP's
    projection. `flipkit.Run(init=FILE)` begins with the tower of a FLIP.

    Args:
        image: image encoder: a name, an object (`flipkit.ViT`) or its config.
        classes: how many.
        tower: "tuned" trains all, "frozen" the head alone; then nothing is dropped in the tower.
        head_norm: "batch" puts a batch normalisation without parameters before the head, which makes up
            for the scale of frozen features; None puts nothing there.
        head_stddev: of the head's initial weights: 0.01 in MAE's probe, 2e-5 in its fine-tuning.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        mixup: in training, pictures and targets are averaged with those of another picture of the batch;
            the weight is drawn from Beta(mixup, mixup) (arXiv 1710.09412). 0 is off.
        cutmix: instead, a box of another picture is put in, whose share of the area is drawn from
            Beta(cutmix, cutmix) (arXiv 1905.04899). 0 is off; with both, each takes half of the steps.
        preprocessing: `flipkit.Preprocessing`; with `Run(init=...)`, set that of the FLIP.
        frozen: patterns of variables that training does not change, as in `flipkit.FLIP`.
        seed: as in `flipkit.FLIP`.

    Call arguments:
        inputs: a dict with `image` (uint8, batch x height x width x 3) and, for training and `evaluate`,
            `label` (int32, batch).

    Returns:
        A dict of float32 `logits` (batch, classes) and, where there are labels, their `target`,
        (batch, classes) too.
    """

    reads = "label"
    logged = ("accuracy",)

    def __init__(
        self,
        image="vit",
        classes=1_000,
        *,
        tower="tuned",
        head_norm=None,
        head_stddev=0.01,
        label_smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
        preprocessing=None,
        frozen=(),
        seed=None,
        name="classifier",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)  # pyright: ignore[reportCallIssue]
        for argument, value, known in (
            ("tower", tower, TOWERS),
            ("head_norm", head_norm, HEAD_NORMS),
        ):
            if value not in known:
                hint = nearest(str(value), map(str, known))
                raise ConfigurationError(f"Unknown {argument}={value!r}. {hint}")
        if not isinstance(classes, int) or classes < 2:
            raise ConfigurationError(f"Expected at least 2 classes. Received: {classes=}")
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(f"Expected a share in [0, 1). Received: {label_smoothing=}")
        if min(mixup, cutmix) < 0:
            raise ConfigurationError(
                f"Expected parameters of a Beta distribution, or 0. Received: {mixup=}, {cutmix=}"
            )
        self.image = encoders.get(image)
        self.image.trainable = tower == "tuned"
        self.classes, self.tower, self.head_norm = classes, tower, head_norm
        self.head_stddev, self.label_smoothing = head_stddev, label_smoothing
        self.mixup, self.cutmix = mixup, cutmix
        self.seed = None if seed is None else checks.as_seed(seed)
        self.preprocessing = get_preprocessing(preprocessing)
        self.frozen = frozen
        if head_norm == "batch":
            self.norm = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-6, center=False, scale=False, name="head_norm"
            )
        self.head = keras.layers.Dense(
            classes,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=head_stddev),
            dtype=self.dtype_policy,
            name="head",
        )

    def build_parts(self):
        super().build_parts()
        self.image.trainable = self.tower == "tuned"  # again, for layers made since
        for layer in [*([self.norm] if self.head_norm else []), self.head]:
            if not layer.built:
                layer.build((None, self.image.dim))

    def call(self, inputs, training=False):
        seed = self.step_seed(training)
        x = self.preprocessing.normalise(inputs["image"])
        outputs = {}
        if "label" in inputs:
            outputs["target"] = ops.one_hot(inputs["label"], self.classes, dtype="float32")
            if training:
                x, outputs["target"] = self._mixed(x, outputs["target"], seed)
        with seed_scope(seed):
            features = self.image(x, training=training and self.tower == "tuned")
        if self.head_norm:
            features = self.norm(features, training=training)
        outputs["logits"] = ops.cast(self.head(features), "float32")
        return outputs

    def _mixed(self, x, target, seed):
        """Pictures and targets as training sees them; row i is mixed with the i-th from the end."""
        smooth = self.label_smoothing
        target = target * (1 - smooth) + smooth / self.classes
        if not (self.mixup or self.cutmix):
            return x, target
        weight = self._weight(seed.named("mix"), *x.shape[1:3])
        x = weight * x + (1 - weight) * ops.flip(x, axis=0)
        share = ops.mean(weight)
        return x, share * target + (1 - share) * ops.flip(target, axis=0)

    def _weight(self, seed, height, width):
        """The weight of each pixel of the picture itself: float32 (1, height, width, 1).

        One draw for the whole batch, as in MAE's fine-tuning.
        """
        weights = []
        if self.mixup:
            share = keras.random.beta(
                (1, 1, 1, 1), self.mixup, self.mixup, seed=seed.named("mixup")
            )
            weights.append(ops.broadcast_to(share, (1, height, width, 1)))
        if self.cutmix:
            draw = seed.named("cutmix")
            kept = keras.random.beta((), self.cutmix, self.cutmix, seed=draw)
            centre = draw.named("centre").uniform((1, 2))[0]
            side = ops.sqrt(1 - kept)  # of the box, as a share of the picture's
            # Centres of pixels, as shares of the picture.
            rows, columns = (np.float32(np.arange(n) + 0.5) / n for n in (height, width))
            inside_rows = ops.abs(rows - centre[0]) < side / 2
            inside_columns = ops.abs(columns - centre[1]) < side / 2
            inside = ops.logical_and(inside_rows[:, None], inside_columns[None, :])
            weights.append(1 - ops.cast(inside, "float32")[None, :, :, None])
        if len(weights) == 1:
            return weights[0]
        return ops.where(seed.named("which").uniform((1, 1))[0, 0] < 0.5, *weights)

    # Training -----------------------------------------------------------------------------------

    def compute_loss(self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True):
        if "target" not in y_pred:
            raise ConfigurationError("The loss needs labels; the batch lacks 'label'")
        entropies = -ops.sum(y_pred["target"] * ops.log_softmax(y_pred["logits"]), axis=1)
        return sum(self.losses, ops.mean(entropies))

    def measure(self, y_pred):
        return class_accuracy(y_pred["logits"], y_pred["target"])

    # Using it -----------------------------------------------------------------------------------

    def classify(self, images, batch_size=64) -> np.ndarray:
        """Pictures -> float32 logits (n, classes).

        Args:
            images: as in `flipkit.FLIP.encode_images`.
        """
        pixels = self.preprocessing.prepare(images, self.image.image_size)
        return self.rows({"image": pixels}, "logits", batch_size)

    def mixing(self):
        """With batch normalization, `mixup` and `cutmix`."""
        mine = ("mixup", "cutmix")
        return [*super().mixing(), *(f"{n}={getattr(self, n):g}" for n in mine if getattr(self, n))]

    def facts(self) -> dict[str, str]:
        """Facts of this model before it trains, for a table."""
        mixing = [f"{name} {getattr(self, name):g}" for name in ("mixup", "cutmix")]
        return {"classes": f"{self.classes:,}", "tower": self.tower, "mixing": ", ".join(mixing)}
