"""Contrastive losses: embeddings of pairs to a number."""

from flipkit import registry
from flipkit.losses.blocks import similarity as similarity
from flipkit.losses.contrastive import ContrastiveLoss as ContrastiveLoss
from flipkit.losses.contrastive import SigmoidLoss as SigmoidLoss
from flipkit.losses.loss import Loss as Loss


def get(identifier) -> Loss:
    """The loss that a name, object or config describes."""
    return registry.get("losses", identifier, Loss)
