"""Contrastive losses: embeddings of pairs to a number."""

from keras import ops

from flipkit import registry
from flipkit.registry import Configurable, register


class Loss(Configurable):
    """A loss over a batch of pairs: `loss(image, text, scale) -> float32 scalar`.

    `image` and `text` are unit vectors (batch, dim), row i of one belonging to row i of the other;
    `scale` is the learned inverse temperature.
    """

    def __call__(self, image, text, scale):
        raise NotImplementedError(f"{type(self).__name__} defines no __call__(image, text, scale)")


def similarity(image, text, scale):
    """Float32 logits (batch, batch): images in rows, texts in columns.

    Float32 whatever the towers compute in: differences of large logits decide the gradient.
    """
    image, text = ops.cast(image, "float32"), ops.cast(text, "float32")
    return ops.cast(scale, "float32") * ops.matmul(image, ops.transpose(text))


@register
class ContrastiveLoss(Loss):
    """Symmetric InfoNCE: the mean of both cross-entropies over the batch's pairs.

    As in CLIP and FLIP (arXiv 2212.00794, section 3), with a log-sum-exp shifted by its maximum: the
    official code's plain exp overflows float32 once scale * cosine passes 88.7.

    Args:
        label_smoothing: share of the target spread evenly over the batch, in [0, 1).
    """

    def __init__(self, label_smoothing=0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, image, text, scale):
        logits = similarity(image, text, scale)
        matched = ops.diagonal(logits)
        if self.label_smoothing:
            matched = (1 - self.label_smoothing) * matched + self.label_smoothing * ops.mean(logits)
        to_text = ops.logsumexp(logits, axis=1) - matched
        to_image = ops.logsumexp(logits, axis=0) - matched
        return ops.mean(to_text + to_image) / 2


def get(identifier) -> Loss:
    """The loss that a name, object or config means."""
    return registry.get("losses", identifier, Loss)
