"""Contrastive losses: embeddings of pairs to a number."""

from keras import ops

from flipkit import checks, registry
from flipkit.registry import Configurable, register


class Loss(Configurable):
    """A loss over a batch of pairs: `loss(image, text, scale) -> float32 scalar`.

    `image` and `text` are unit vectors (batch, dim), row i of one belonging to row i of the other;
    `scale` is the learned inverse temperature.

    Attributes:
        needs: further arguments that the caller passes by these names: `("logit_bias",)`, an attribute of
            the model, calls `loss(image, text, scale, logit_bias=...)`; "inputs" is the batch.
        variables: arrays that the loss reads and training does not change, such as a teacher's weights;
            compiled programs take them as inputs.
    """

    needs: tuple[str, ...] = ()
    variables: list = []

    def prepare(self, model):
        """Called with the model by `compile`: raise here if the loss does not fit it, or load files."""

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
        checks.share(label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def __call__(self, image, text, scale):
        logits = similarity(image, text, scale)
        matched = ops.diagonal(logits)
        if self.label_smoothing:
            matched = (1 - self.label_smoothing) * matched + self.label_smoothing * ops.mean(logits)
        to_text = ops.logsumexp(logits, axis=1) - matched
        to_image = ops.logsumexp(logits, axis=0) - matched
        return ops.mean(to_text + to_image) / 2


@register
class SigmoidLoss(Loss):
    """SigLIP's loss (Zhai et al., arXiv 2303.15343): each pair by itself, right or wrong.

    The sum over all pairs of -log sigmoid(+-logit), divided by the batch, not by its square. The model
    learns a bias; SigLIP begins with `FLIP(temperature=0.1, init_logit_bias=-10)`: a scale of log 10 before
    the exp, and nearly all of the many wrong pairs right from the start (section 3.2).
    """

    needs = ("logit_bias",)

    def __call__(self, image, text, scale, logit_bias):
        logits = similarity(image, text, scale) + ops.cast(logit_bias, "float32")
        signs = 2 * ops.eye(logits.shape[0]) - 1  # 1 for right pairs, -1 for wrong ones
        # -log sigmoid(x) = softplus(-x), which neither overflows nor cancels.
        return ops.sum(ops.softplus(-signs * logits)) / logits.shape[0]


def get(identifier) -> Loss:
    """The loss that a name, object or config describes."""
    return registry.get("losses", identifier, Loss)
