"""Models: the base class of all, and flipkit's own."""

from flipkit import registry
from flipkit.models.classifier import Classifier as Classifier
from flipkit.models.flip import FLIP as FLIP
from flipkit.models.masked import Masked as Masked
from flipkit.models.reconstruction import MAEDecoder as MAEDecoder
from flipkit.models.trainable import Trainable as Trainable


def get(identifier) -> Trainable:
    """The model that a name, an object or a config describes."""
    return registry.get("models", identifier, Trainable)
