"""Learning from a teacher: a loss that also compares a batch's similarities with another model's."""

import os

import numpy as np
from keras import ops

from flipkit import losses
from flipkit.checks import sides
from flipkit.errors import ConfigurationError
from flipkit.losses import pairs
from flipkit.models.flip import FLIP
from flipkit.registry import register
from flipkit.weights import load_pretrained

# Both tokenizers encode this text; their ids have to be equal.
PROBE = "Two small dogs, a RED ball & 3 cafés: left of the unbelievable sunset"


@register
class Distillation(losses.Loss):
    """A loss, plus the distance between student and teacher (CLIP-KD, arXiv 2307.12732).

    The teacher embeds the same batch, whole and as at inference. The loss is the given one plus two terms.
    `weight` times the Kullback-Leibler divergence of the student's distribution over the batch from the
    teacher's, a softmax over the similarities, averaged over images and texts (the paper's contrastive
    relational distillation). `feature_weight` times the mean squared distance of the embeddings,
    averaged likewise (its feature distillation). Only the student learns.

    Args:
        teacher: what `flipkit.load_pretrained` reads, such as a `.keras` file; or a `flipkit.FLIP`, in
            plain `fit`: an object can't be written down. It has to see pictures of the student's
            size and to read the same ids.
        loss: the loss to which the terms are added: a name or an object.
        weight: factor of the divergence.
        temperature: of both softmaxes; None is each model's own learned one.
        feature_weight: factor of the distance; needs embeddings of equal length.
    """

    def __init__(
        self, teacher=None, *, loss="contrastive", weight=1.0, temperature=None, feature_weight=0.0
    ):
        self.teacher = (
            teacher if isinstance(teacher, FLIP) or teacher is None else os.fspath(teacher)
        )
        self.loss = losses.get(loss)
        self.weight, self.feature_weight = float(weight), float(feature_weight)
        self.temperature = temperature
        if temperature is not None and not temperature > 0:
            raise ConfigurationError(f"Expected a number above 0. Received: {temperature=}")
        self._model = self.teacher if isinstance(self.teacher, FLIP) else None

    @property
    def needs(self):
        """The teacher's embeddings, and what the other loss needs."""
        return ("targets", *(name for name in self.loss.needs if name != "targets"))

    @property
    def variables(self):
        """The teacher's weights, which training does not change."""
        return self._model.variables if self._model is not None else []

    def prepare(self, model):
        """Loads the teacher; raises if it does not take the input of `model`."""
        if self._model is None:
            if self.teacher is None:
                raise ConfigurationError(
                    "Distillation needs a teacher: set loss.teacher=model.keras"
                )
            self._model = load_pretrained(self.teacher)
        teacher = self._model
        if not teacher.built:
            teacher.build()
        sizes = [sides(m.image.image_size) for m in (model, teacher)]
        lengths = [m.text.length for m in (model, teacher)]
        if sizes[0] != sizes[1] or lengths[0] != lengths[1]:
            raise ConfigurationError(
                f"Student and teacher see the same batch. Expected a teacher for {sizes[0]} pixels and "
                f"{lengths[0]} tokens. Received: one for {sizes[1]} and {lengths[1]}"
            )
        if not _read_alike(model.tokenizer, teacher.tokenizer, lengths[0]):
            raise ConfigurationError(
                "Student and teacher read the same ids. Expected the teacher's tokenizer. Received: "
                f"{model.tokenizer!r}, while the teacher has {teacher.tokenizer!r}"
            )
        if self.feature_weight and model.dim != teacher.dim:
            raise ConfigurationError(
                f"A feature_weight needs embeddings of equal length. Received: dim={model.dim}, and "
                f"{teacher.dim} in the teacher"
            )

    def targets(self, inputs):
        """The teacher's embeddings of whole pictures and texts, and the other loss's targets."""
        whole = {"image", "text"} if "image" in inputs else {"patches", "image_ids", "text"}
        known = self._model({name: inputs[name] for name in whole}, training=False)
        mine = {f"teacher_{name}": ops.stop_gradient(known[name]) for name in ("image", "text")}
        return mine | self.loss.targets(inputs)

    def __call__(self, image, text, scale, targets, **needed):
        known = {name: targets[f"teacher_{name}"] for name in ("image", "text")}
        scales = (scale, self._model.scale)
        if self.temperature is not None:
            scales = (1 / self.temperature,) * 2
        if "targets" in self.loss.needs:
            needed["targets"] = targets
        total = self.loss(image, text, scale, **needed)
        apart = pairs.divergences((image, known["image"]), (text, known["text"]), scales)
        total += self.weight * sum(map(ops.mean, apart)) / 2
        if self.feature_weight:
            apart = _distance(image, known["image"]) + _distance(text, known["text"])
            total += self.feature_weight * apart / 2
        return total

    def get_config(self):
        if isinstance(self.teacher, FLIP):
            raise ConfigurationError(
                "A teacher that is an object can't be written down. Save it, and give its path: "
                "Distillation('teacher.keras')"
            )
        return super().get_config()

    def __repr__(self):
        return f"Distillation({self.teacher if isinstance(self.teacher, str) else 'an object'!r})"


def _distance(a, b):
    a, b = ops.cast(a, "float32"), ops.cast(b, "float32")
    return ops.mean(ops.sum(ops.square(a - b), axis=-1))


def _read_alike(student, teacher, length):
    """Whether two tokenizers return the same ids; True if one is missing."""
    if student is None or teacher is None or not student.trained or not teacher.trained:
        return True
    if student.vocab != teacher.vocab:
        return False
    return np.array_equal(student([PROBE], length), teacher([PROBE], length))
