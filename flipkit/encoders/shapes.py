"""Encoders without memory, for counting."""

import math

import keras

from flipkit import keras_inside


def weights(encoder) -> int:
    """The number of the encoder's weights, learned or frozen."""
    return sum(math.prod(variable.shape) for variable in encoder.weights)


def shape_only(encoder):
    """A copy of `encoder` with shapes and no memory, for counting."""
    with keras_inside.without_tensorflow():
        copy = type(encoder).from_config(encoder.get_config())
    with keras_inside.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
        copy.build(None)
    return copy
