"""The image and text towers: tokens in, one feature vector per row out."""

import keras

from flipkit import registry
from flipkit.encoders.shapes import shape_only as shape_only
from flipkit.encoders.shapes import weights as weights
from flipkit.encoders.text import TextTransformer as TextTransformer
from flipkit.encoders.transformer import TRANSFORMER_LAYOUT as TRANSFORMER_LAYOUT
from flipkit.encoders.vit import ViT as ViT


def get(identifier):
    """The encoder that a name, object or config describes."""
    return registry.get("encoders", identifier, keras.layers.Layer)
