"""Multi-head self-attention as a layer."""

import keras
import numpy as np
from keras import ops

from flipkit.errors import ConfigurationError, nearest
from flipkit.layers import kernels
from flipkit.layers.patches import gather
from flipkit.registry import register

# flax's and FLIP's choice for query, key and value: Glorot on the fused (dim, 3 * dim) kernel.
_QKV_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {"scale": 0.5, "mode": "fan_avg", "distribution": "uniform"},
}
ATTENTION_IMPLEMENTATIONS = ("auto", "einsum", "fused")


def dense_2d(layer, x):
    """Applies a Dense to (batch, length, dim) as 2-D: about 1.5 times as fast on XLA:CPU."""
    return ops.reshape(layer(ops.reshape(x, (-1, x.shape[-1]))), (-1, x.shape[1], layer.units))


def _some(mask):
    """`mask` (batch, length), with rows of all True for those of all False: a softmax over none is NaN."""
    if mask is None:
        return None
    return ops.logical_or(mask, ops.logical_not(ops.any(mask, axis=1, keepdims=True)))


def _allowed_first(x, mask):
    """(batch, length, dim), the allowed ones of `mask` first, and their number: int32 (batch,).

    Without a causal mask, keys have no order, so that any mask is a length.
    """
    if mask is None:
        return x, None
    mask = ops.cast(mask, "int32")
    return gather(x, ops.argsort(1 - mask, axis=1)), ops.sum(mask, axis=1)


@register
class Attention(keras.layers.Layer):
    """Multi-head self-attention, (batch, length, dim) -> (batch, length, dim).

    Args:
        dim: width; divisible by `heads`.
        heads: number of heads.
        causal: whether a token sees only itself and earlier ones.
        impl: "einsum" computes scores explicitly, softmax in float32. "fused" is JAX's
            `jax.nn.dot_product_attention`, by cuDNN's flash attention where there is one that takes the
            dtype and the heads (`flipkit.layers.kernels.has_kernel`), or another backend's
            `keras.ops.dot_product_attention`. "auto" takes "fused" with torch, and on GPUs where cuDNN
            takes it, and "einsum" elsewhere. In JAX, a causal attention with a mask, or with a single
            query, is "einsum".

    Call arguments:
        x: (batch, length, dim).
        mask: bool (batch, length), False for tokens that no query may see; None is all True, and so is a
            row that is all False.
        queries: (batch, asking, dim), the tokens that look at `x` and that come back; None is `x` itself.
    """

    def __init__(self, dim, heads, causal=False, impl="auto", **kwargs):
        super().__init__(**kwargs)
        if dim % heads:
            raise ConfigurationError(
                f"Expected a width divisible by the number of heads. Received: {dim=}, {heads=}"
            )
        if impl not in ATTENTION_IMPLEMENTATIONS:
            raise ConfigurationError(
                f"Unknown impl={impl!r}. {nearest(str(impl), ATTENTION_IMPLEMENTATIONS)}"
            )
        self.dim, self.heads, self.causal, self.impl = dim, heads, causal, impl
        self.supports_masking = True  # or Keras warns that the mask argument is lost

        def dense(name, kernel):
            return keras.layers.Dense(
                dim, kernel_initializer=kernel, dtype=self.dtype_policy, name=name
            )

        self.query = dense("query", _QKV_INITIALIZER)
        self.key = dense("key", _QKV_INITIALIZER)
        self.value = dense("value", _QKV_INITIALIZER)
        self.out = dense("out", "glorot_uniform")

    def build(self, input_shape):
        for layer in (self.query, self.key, self.value, self.out):
            if not layer.built:
                layer.build((None, self.dim))

    def call(self, x, mask=None, queries=None):
        queries = x if queries is None else queries
        asking, query = queries.shape[1], self._split(self.query, queries)
        mask = _some(mask)
        if self._implementation() == "einsum" or not self._can_fuse(mask, asking):
            key, value = self._split(self.key, x), self._split(self.value, x)
            found = kernels.explicit(query, key, value, self._allowed(mask, x.shape[1]))
        elif keras.backend.backend() == "jax":
            x, lengths = _allowed_first(x, mask)
            key, value = self._split(self.key, x), self._split(self.value, x)
            kernel = kernels.has_kernel(query.dtype, self.head_dim)
            found = kernels.fused(query, key, value, lengths, self.causal, kernel)
        else:
            key, value = self._split(self.key, x), self._split(self.value, x)
            allowed = self._allowed(mask, x.shape[1])
            found = ops.dot_product_attention(query, key, value, mask=allowed)
        return dense_2d(self.out, ops.reshape(found, (-1, asking, self.dim)))

    def shares(self, x, mask=None, queries=None):
        """The attention of each token, float32 (batch, heads, asking, length), with sums of 1."""
        query = self._split(self.query, x if queries is None else queries)
        allowed = self._allowed(_some(mask), x.shape[1])
        return kernels.shares(query, self._split(self.key, x), allowed)

    def _split(self, layer, x):
        """(batch, length, dim) through a Dense -> (batch, length, heads, head_dim)."""
        return ops.reshape(dense_2d(layer, x), (-1, x.shape[1], self.heads, self.head_dim))

    @property
    def head_dim(self):
        return self.dim // self.heads

    def _implementation(self):
        if self.impl != "auto":
            return self.impl
        if keras.backend.backend() == "torch":  # which lists no devices, as of Keras 3.15
            return "fused"
        fused = kernels.on_gpu()
        if fused and keras.backend.backend() == "jax":
            fused = kernels.has_kernel(self.compute_dtype, self.head_dim)
        return "fused" if fused else "einsum"

    def _can_fuse(self, mask, asking):
        """Whether lengths can express `mask`, and scores would take more memory than queries."""
        return keras.backend.backend() != "jax" or (
            asking > 1 and not (self.causal and mask is not None)
        )

    def _allowed(self, mask, length):
        """Bool, broadcast to (batch, heads, queries, keys); None where all is allowed."""
        allowed = None
        if self.causal:
            allowed = np.tril(np.ones((length, length), bool))[None, None]
        if mask is not None:
            mask = mask[:, None, None, :]
            allowed = mask if allowed is None else ops.logical_and(allowed, mask)
        return allowed

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"dim": self.dim, "heads": self.heads, "causal": self.causal, "impl": self.impl}
        return {**super().get_config(), **config}
