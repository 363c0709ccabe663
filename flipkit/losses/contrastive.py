"""The losses of CLIP and SigLIP."""

from keras import ops

from flipkit import checks
from flipkit.losses import pairs
from flipkit.losses.loss import Loss
from flipkit.registry import register


@register
class ContrastiveLoss(Loss):
    """Symmetric InfoNCE: the mean of both cross-entropies over the batch's pairs.

    As in CLIP and FLIP (arXiv 2212.00794, section 3), with a log-sum-exp shifted by its maximum: the
    official code's plain exp overflows float32 once scale * cosine passes 88.7. A large batch is compared
    in blocks, exactly, with memory for one block: see `flipkit.losses.blocks`.

    Args:
        label_smoothing: share of the target spread evenly over the batch, in [0, 1).
    """

    def __init__(self, label_smoothing=0.0):
        checks.share(label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def __call__(self, image, text, scale):
        to_text, to_image = pairs.cross_entropies(image, text, scale)
        loss = (ops.mean(to_text) + ops.mean(to_image)) / 2
        if self.label_smoothing:
            right, every = pairs.means(image, text, scale)
            loss += self.label_smoothing * (right - every)
        return loss


@register
class SigmoidLoss(Loss):
    """SigLIP's loss (Zhai et al., arXiv 2303.15343): each pair by itself, right or wrong.

    The sum over all pairs of -log sigmoid(+-logit), divided by the batch, not by its square. The model
    learns a bias; SigLIP begins with `FLIP(temperature=0.1, init_logit_bias=-10)`: a scale of log 10 before
    the exp, and nearly all of the many wrong pairs right from the start (section 3.2).
    """

    needs = ("logit_bias",)

    def __call__(self, image, text, scale, logit_bias):
        return ops.mean(pairs.sigmoid_sums(image, text, scale, logit_bias))
