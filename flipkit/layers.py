"""The layers both towers are made of: patches, gathering, attention, dropout, transformer blocks."""

import keras
import numpy as np
from keras import ops

from flipkit import attention
from flipkit.errors import ConfigurationError, nearest
from flipkit.paths import canonical
from flipkit.random import Seed, current_seed, mix
from flipkit.registry import register


def patchify(images, patch_size: int):
    """(batch, height, width, channels) -> (batch, patches, patch_size * patch_size * channels).

    Patches run row by row; so do the pixels of a patch, channels fastest. Any dtype.
    """
    _, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = ops.reshape(images, (-1, rows, patch_size, columns, patch_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows * columns, patch_size * patch_size * channels))


def unpatchify(patches, patch_size: int, grid: tuple[int, int]):
    """The inverse of `patchify`: (batch, patches, pixels) -> (batch, height, width, channels)."""
    rows, columns = grid
    channels = patches.shape[-1] // patch_size**2
    x = ops.reshape(patches, (-1, rows, columns, patch_size, patch_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows * patch_size, columns * patch_size, channels))


def gather(x, ids):
    """(batch, tokens, ...) and ids (batch, kept) -> (batch, kept, ...): each row's own choice."""
    shape = (-1, ids.shape[1]) + (1,) * (len(x.shape) - 2)
    return ops.take_along_axis(x, ops.reshape(ids, shape), axis=1)


def sincos_positions(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, float32 (rows * columns, dim); `dim` divisible by 4.

    As in MAE and the official FLIP: the first half encodes the column, the second the row, each as
    sines followed by cosines of wavelengths from 2 pi to 10,000 * 2 pi.
    """
    frequencies = 10_000.0 ** -(np.arange(dim // 4) / (dim / 4))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [np.outer(place, frequencies) for place in (column, row)]
    halves = [np.concatenate([np.sin(a), np.cos(a)], axis=1) for a in angles]
    return np.concatenate(halves, axis=1).astype("float32")


def resampling(size: int, new_size: int) -> np.ndarray:
    """How `new_size` samples of a line are mixed from its `size` samples: float64 (new_size, size).

    Keys's cubic, stretched where samples become fewer (antialiased), with the weights of every new
    sample summing to 1: what open_clip, big_vision and Pillow call bicubic. At its own size the
    identity.
    """
    step = size / new_size
    places = (np.arange(new_size) + 0.5) * step - 0.5  # samples stand in the middle of their share
    x = np.abs(places[:, None] - np.arange(size)) / max(step, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resample_positions(table, grid: tuple[int, int], new_grid: tuple[int, int]):
    """Positions (rows * columns, dim) of one grid -> (new rows * new columns, dim) of another.

    By their place in the picture, as ViT does it (arXiv 2010.11929, section 3.2): a constant matrix
    times the table, so that a table that is learned gets a gradient.
    """
    if tuple(grid) == tuple(new_grid):
        return table
    rows, columns = map(resampling, grid, new_grid)
    matrix = np.kron(rows, columns).astype("float32")
    # A fixed table stays a constant of the program.
    return matrix @ table if isinstance(table, np.ndarray) else ops.matmul(matrix, table)


def _quick_gelu(x):
    return x * ops.sigmoid(1.702 * x)  # the approximation of OpenAI's CLIP


def _gelu_tanh(x):
    return ops.gelu(x, approximate=True)  # what the official FLIP uses, through flax's default


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
class Dropout(keras.layers.Layer):
    """Sets random entries of `(batch, ...)` to 0 and scales the rest up; identity outside training.

    Inside `flipkit.random.seed_scope` (FLIP opens one) the choice is a function of (seed, step, row,
    this layer's path): a micro-batch draws what its rows would draw in the whole batch. Elsewhere it
    draws from a generator of its own, as Keras's Dropout does.

    Args:
        rate: share of entries set to 0, in [0, 1).
        noise_shape: as Keras's: axes of size 1 are dropped together; `(None, 1, 1)` on
            `(batch, length, dim)` drops whole rows, which is stochastic depth.
        seed: int, for the layer's own generator.
    """

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ConfigurationError(f"Expected a rate in [0, 1). Received: rate={rate}")
        self.rate, self.seed = rate, seed
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)  # JSON has lists
        self.supports_masking = True

    def build(self, input_shape):
        self.generator = keras.random.SeedGenerator(self.seed, name="generator")

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        shape = [ops.shape(x)[0], *x.shape[1:]]
        if self.noise_shape is not None:
            shape = [
                full if n is None else n for full, n in zip(shape, self.noise_shape, strict=True)
            ]
        seed = current_seed()
        seed = self.draw() if seed is None else seed.named(canonical(self.path))
        noise = seed.uniform(shape)
        return ops.where(noise >= self.rate, x / (1 - self.rate), ops.zeros_like(x))

    def draw(self) -> Seed:
        """The next seed of the layer's own generator."""
        state = ops.cast(self.generator.next(), "int32")
        seed = Seed()
        seed.key = mix(ops.bitwise_xor(mix(ops.bitwise_xor(state[0], seed.key)), state[1]))
        return seed

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"rate": self.rate, "noise_shape": self.noise_shape, "seed": self.seed}
        return {**super().get_config(), **config}


# flax's and FLIP's choice for query, key and value: Glorot on the fused (dim, 3 * dim) kernel.
_QKV_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {"scale": 0.5, "mode": "fan_avg", "distribution": "uniform"},
}
ATTENTION_IMPLEMENTATIONS = ("auto", "einsum", "fused")


def _dense(layer, x):
    """Applies a Dense to (batch, length, dim) as 2-D: about 1.5 times as fast on XLA:CPU."""
    return ops.reshape(layer(ops.reshape(x, (-1, x.shape[-1]))), (-1, x.shape[1], layer.units))


def _some(mask):
    """`mask` (batch, length), with rows of all True for those of all False: a softmax over none is NaN."""
    if mask is None:
        return None
    return ops.logical_or(mask, ops.logical_not(ops.any(mask, axis=1, keepdims=True)))


def _allowed_first(x, mask):
    """(batch, length, dim), those that `mask` allows first, and how many they are: int32 (batch,).

    Keys have no order where attention is not causal, so that any mask is a length.
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
            dtype and the heads (`flipkit.attention.has_kernel`), or another backend's
            `keras.ops.dot_product_attention`. "auto" takes "fused" with torch, and on GPUs where cuDNN
            takes it, and "einsum" elsewhere. A causal attention with a mask, and one where a single
            query asks, is "einsum" in JAX.

    Call arguments:
        x: (batch, length, dim).
        mask: bool (batch, length), False for tokens nobody may look at; None is all True, and so is a row
            that is all False.
        queries: (batch, asking, dim), who looks at `x` and comes back changed; None is `x` itself.
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
        self.supports_masking = True  # or Keras warns that the mask given by hand is lost

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
            found = attention.explicit(query, key, value, self._allowed(mask, x.shape[1]))
        elif keras.backend.backend() == "jax":
            x, lengths = _allowed_first(x, mask)
            key, value = self._split(self.key, x), self._split(self.value, x)
            kernel = attention.has_kernel(query.dtype, self.head_dim)
            found = attention.fused(query, key, value, lengths, self.causal, kernel)
        else:
            key, value = self._split(self.key, x), self._split(self.value, x)
            allowed = self._allowed(mask, x.shape[1])
            found = ops.dot_product_attention(query, key, value, mask=allowed)
        return _dense(self.out, ops.reshape(found, (-1, asking, self.dim)))

    def shares(self, x, mask=None, queries=None):
        """How each token shares out its attention: float32 (batch, heads, asking, length), sums of 1."""
        query = self._split(self.query, x if queries is None else queries)
        allowed = self._allowed(_some(mask), x.shape[1])
        return attention.shares(query, self._split(self.key, x), allowed)

    def _split(self, layer, x):
        """(batch, length, dim) through a Dense -> (batch, length, heads, head_dim)."""
        return ops.reshape(_dense(layer, x), (-1, x.shape[1], self.heads, self.head_dim))

    @property
    def head_dim(self):
        return self.dim // self.heads

    def _implementation(self):
        if self.impl != "auto":
            return self.impl
        if keras.backend.backend() == "torch":  # which tells no devices, as of Keras 3.15
            return "fused"
        on_gpu = keras.distribution.list_devices()[0].startswith(("gpu", "cuda"))
        if on_gpu and keras.backend.backend() == "jax":
            on_gpu = attention.has_kernel(self.compute_dtype, self.head_dim)
        return "fused" if on_gpu else "einsum"

    def _can_fuse(self, mask, asking):
        """Whether lengths can say what `mask` says, and scores would take more room than queries."""
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
        return _dense(self.down, self._activation(_dense(self.up, x)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"dim": self.dim, "hidden": self.hidden, "activation": self.activation}
        return {**super().get_config(), **config}


@register
class LayerScale(keras.layers.Layer):
    """Each channel times a factor that is learned, (..., dim) -> (..., dim) (CaiT, arXiv 2103.17239).

    Args:
        dim: channels.
        value: of every factor at first, such as 1e-5.
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
        layer_scale: what the factors of a branch's channels begin as (`LayerScale`); None is no factors.
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
        # The rates are kept in the layers; a rate of 0 makes no layer and no state.
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
        branch = self.attention(self.attention_norm(x), mask=mask)
        x = x + self._scaled(branch, self.attention_scales, self.attention_drops, training)
        branch = self.mlp(self.mlp_norm(x))
        return x + self._scaled(branch, self.mlp_scales, self.mlp_drops, training)

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
