"""Transformer blocks and their parts: norms, MLPs, layer scales; attention pooling."""

import keras
from keras import ops

from flipkit.distribution import constrained
from flipkit.errors import ConfigurationError, nearest
from flipkit.layers.attention import Attention, dense_2d
from flipkit.layers.dropout import Dropout
from flipkit.random import Seed
from flipkit.registry import register


def _quick_gelu(x):
    return x * ops.sigmoid(1.702 * x)  # the approximation of OpenAI's CLIP


def _gelu_tanh(x):
    return ops.gelu(x, approximate=True)  # the official FLIP's, through flax's default


def _gelu(x):
    return ops.gelu(x, approximate=False)


def _relu2(x):
    # Primer, arXiv 2109.08668; a fifth of a CPU step faster than GELU
    return ops.square(ops.relu(x))


ACTIVATIONS = {
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "quick_gelu": _quick_gelu,
    "relu2": _relu2,
}


def activation(name: str):
    """The function named `name`: "gelu_tanh" (FLIP), "gelu", "quick_gelu" (CLIP) or "relu2"."""
    if name not in ACTIVATIONS:
        raise ConfigurationError(f"Unknown activation={name!r}. {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


@register
class MLP(keras.layers.Layer):
    """(batch, length, dim) -> (batch, length, dim) through `hidden` units and an activation."""

    def __init__(self, dim, hidden, activation="gelu_tanh", **kwargs):
        super().__init__(**kwargs)
        self.dim, self.hidden, self.activation = dim, hidden, activation
        self.supports_masking = True
        self._activation = globals()["activation"](activation)
        self.up = keras.layers.Dense(hidden, dtype=self.dtype_policy, name="up")
        self.down = keras.layers.Dense(dim, dtype=self.dtype_policy, name="down")

    def build(self, input_shape):
        if not self.up.built:
            self.up.build((None, self.dim))
        if not self.down.built:
            self.down.build((None, self.hidden))

    def call(self, x):
        return dense_2d(self.down, self._activation(dense_2d(self.up, x)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"dim": self.dim, "hidden": self.hidden, "activation": self.activation}
        return {**super().get_config(), **config}


@register
class LayerScale(keras.layers.Layer):
    """Each channel times a learned factor, (..., dim) -> (..., dim) (CaiT, arXiv 2103.17239).

    Args:
        dim: channels.
        value: initial value of every factor, such as 1e-5.
    """

    def __init__(self, dim, value, **kwargs):
        super().__init__(**kwargs)
        if not value >= 0:
            raise ConfigurationError(f"Expected a layer scale from 0 up. Received: {value}")
        self.dim, self.value = dim, value
        self.supports_masking = True

    def build(self, input_shape=None):
        initial = keras.initializers.Constant(self.value)
        self.gamma = self.add_weight(shape=(self.dim,), initializer=initial, name="gamma")

    def call(self, x):
        return x * ops.cast(self.gamma, x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "value": self.value}


@register
class AttentionPool(keras.layers.Layer):
    """Pools tokens by attention, (batch, length, dim) -> (batch, dim): SigLIP's head "map".

    A learned probe looks at all tokens; then y + mlp(norm(y)) (arXiv 2106.04560, section 2.2).

    Args:
        dim, heads, impl: as in `Attention`.
        mlp_dim: hidden units; None is 4 * dim.
        activation: see `flipkit.layers.activation`.
        norm_epsilon: of the LayerNorm.
    """

    def __init__(
        self,
        dim,
        heads,
        *,
        mlp_dim=None,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
        impl="auto",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dim, self.heads, self.mlp_dim, self.impl = dim, heads, mlp_dim, impl
        self.activation, self.norm_epsilon = activation, norm_epsilon
        policy = self.dtype_policy
        self.attention = Attention(dim, heads, impl=impl, dtype=policy, name="attention")
        self.norm = layer_norm("norm", policy, norm_epsilon)
        self.mlp = MLP(dim, mlp_dim or 4 * dim, activation, dtype=policy, name="mlp")

    def build(self, input_shape):
        shape, initializer = (
            (1, 1, self.dim),
            "glorot_uniform",
        )  # as big_vision's and Hugging Face's
        self.probe = self.add_weight(shape=shape, initializer=initializer, name="probe")
        for layer in (self.attention, self.norm, self.mlp):
            if not layer.built:
                layer.build((None, None, self.dim))

    def call(self, x):
        probe = ops.broadcast_to(ops.cast(self.probe, x.dtype), (ops.shape(x)[0], 1, self.dim))
        x = self.attention(x, queries=probe)
        return (x + self.mlp(self.norm(x)))[:, 0]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.dim)

    def get_config(self):
        names = ("dim", "heads", "mlp_dim", "activation", "norm_epsilon", "impl")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class TransformerBlock(keras.layers.Layer):
    """Pre-norm transformer block, (batch, length, dim) -> (batch, length, dim).

    x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        dim, heads, causal, impl: as in `Attention`.
        mlp_dim: hidden units; None is 4 * dim.
        activation: see `flipkit.layers.activation`.
        dropout: rate on both branches' outputs.
        drop_path: rate at which a row skips a branch (stochastic depth).
        norm_epsilon: of the LayerNorms: 1e-6 in FLIP, 1e-5 in CLIP.
        layer_scale: initial value of the factors of a branch's channels (`LayerScale`); None is no factors.
    """

    def __init__(
        self,
        dim,
        heads,
        *,
        mlp_dim=None,
        causal=False,
        activation="gelu_tanh",
        dropout=0.0,
        drop_path=0.0,
        norm_epsilon=1e-6,
        impl="auto",
        layer_scale=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dim, self.heads, self.mlp_dim, self.causal = dim, heads, mlp_dim, causal
        self.norm_epsilon = norm_epsilon
        self.activation, self.impl = activation, impl
        self.dropout, self.drop_path, self.layer_scale = dropout, drop_path, layer_scale
        self.supports_masking = True
        policy = self.dtype_policy
        self.attention_norm = layer_norm("attention_norm", policy, norm_epsilon)
        self.attention = Attention(dim, heads, causal, impl, dtype=policy, name="attention")
        self.mlp_norm = layer_norm("mlp_norm", policy, norm_epsilon)
        self.mlp = MLP(dim, mlp_dim or 4 * dim, activation, dtype=policy, name="mlp")
        self.attention_scales = self._scales("attention")
        self.mlp_scales = self._scales("mlp")
        # The layers hold the rates; a rate of 0 makes no layer and no state.
        self.attention_drops = self._drops("attention")
        self.mlp_drops = self._drops("mlp")

    def _scales(self, branch):
        if self.layer_scale is None:
            return []
        name = f"{branch}_scale"
        return [LayerScale(self.dim, self.layer_scale, dtype=self.dtype_policy, name=name)]

    def _drops(self, branch):
        rates = {"dropout": (self.dropout, None), "drop_path": (self.drop_path, (None, 1, 1))}
        return [
            Dropout(rate, noise_shape=shape, dtype=self.dtype_policy, name=f"{branch}_{name}")
            for name, (rate, shape) in rates.items()
            if rate
        ]

    def build(self, input_shape):
        shape = (None, None, self.dim)
        children = [self.attention_norm, self.attention, self.mlp_norm, self.mlp]
        children += self.attention_scales + self.attention_drops + self.mlp_scales + self.mlp_drops
        for layer in children:
            if not layer.built:
                layer.build(shape)

    def seed(self) -> Seed | None:
        """A seed for one call outside every `seed_scope`; None if nothing is dropped."""
        drops = self.attention_drops + self.mlp_drops
        return drops[0].draw() if drops else None

    def call(self, x, mask=None, training=False):
        x = constrained(x)
        branch = self.attention(self.attention_norm(x), mask=mask)
        x = x + self._scaled(branch, self.attention_scales, self.attention_drops, training)
        branch = self.mlp(self.mlp_norm(x))
        return constrained(x + self._scaled(branch, self.mlp_scales, self.mlp_drops, training))

    def _scaled(self, branch, scales, drops, training):
        for scale in scales:
            branch = scale(branch)
        for drop in drops:
            branch = drop(branch, training=training)
        return branch

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        names = ("dim", "heads", "mlp_dim", "causal", "activation", "dropout", "drop_path")
        names += ("norm_epsilon", "impl", "layer_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def layer_norm(name, dtype, epsilon=1e-6):
    """Keras's LayerNormalization with FLIP's epsilon; Keras's own is 1e-3."""
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)
