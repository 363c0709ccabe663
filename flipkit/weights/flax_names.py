"""The names and shapes of a transformer's parts in flax, in the official FLIP and in big_vision."""

import re

import numpy as np

from flipkit.weights.tensors import Entry

_PARTS = {
    "attention_norm/": "LayerNorm_0/",
    "mlp_norm/": "LayerNorm_1/",
    "attention/": "MultiHeadDotProductAttention_0/",
    "mlp/up/": "MlpBlock_0/Dense_0/",
    "mlp/down/": "MlpBlock_0/Dense_1/",
    "gamma": "scale",
    "beta": "bias",
}


def flax_name(path: str) -> str:
    """A path within a tower, `block_07/mlp/up/kernel` -> `encoderblock_07/MlpBlock_0/Dense_0/kernel`."""
    path = re.sub("^norm/", "encoder_norm/", re.sub("^block_", "encoderblock_", path))
    for ours, theirs in _PARTS.items():
        path = path.replace(ours, theirs)
    return path


def entry(name: str, path: str, shape=None) -> Entry:
    """A tensor that holds one weight, the same numbers in the same order, in `shape`; None is ours."""

    def encode(values):
        return np.reshape(values[0], values[0].shape if shape is None else shape)

    return Entry(name, (path,), encode, lambda tensor, shapes: [tensor.reshape(shapes[0])])


def head_shape(path: str, heads: int, dim: int) -> tuple[int, ...] | None:
    """The shape of an attention's weight where heads are an axis, in flax and in Keras; None if `path`
    is no such weight of flipkit.
    """
    found = re.search("attention/(query|key|value|out)/(kernel|bias)$", path)
    if not found or found.groups() == ("out", "bias"):
        return None
    inside = (heads, dim // heads)
    if found[2] == "bias":
        return inside
    return (*inside, dim) if found[1] == "out" else (dim, *inside)
