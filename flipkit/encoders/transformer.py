"""A stack of transformer blocks and a final norm: the base of the two towers."""

import keras

from flipkit import checks
from flipkit.errors import ConfigurationError, nearest
from flipkit.layers import TransformerBlock, layer_norm, stack

# How to split weights over a mesh axis named "model": (path pattern, axes of the variable).
TRANSFORMER_LAYOUT = (
    ("attention/query/kernel", (None, "model")),
    ("attention/key/kernel", (None, "model")),
    ("attention/value/kernel", (None, "model")),
    ("attention/query/bias", ("model",)),
    ("attention/key/bias", ("model",)),
    ("attention/value/bias", ("model",)),
    ("attention/out/kernel", ("model", None)),
    ("mlp/up/kernel", (None, "model")),
    ("mlp/up/bias", ("model",)),
    ("mlp/down/kernel", ("model", None)),
)
TABLE = keras.initializers.RandomNormal(stddev=0.02)  # class token, text positions, token table


def check_choice(name, value, known):
    """Raises unless `value` is one of `known`."""
    if value not in known:
        raise ConfigurationError(f"Unknown {name}={value!r}. {nearest(str(value), known)}")


class Transformer(keras.layers.Layer):
    """A stack of blocks and a final norm: the base of the two towers."""

    def __init__(
        self,
        dim,
        depth,
        heads,
        *,
        mlp_dim=None,
        activation="gelu_tanh",
        causal=False,
        dropout=0.0,
        drop_path=0.0,
        norm_epsilon=1e-6,
        impl="auto",
        remat="none",
        layer_scale=None,
        scan=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.whole(dim=dim, depth=depth, heads=heads)
        if mlp_dim is not None:
            checks.whole(mlp_dim=mlp_dim)
        checks.share(dropout=dropout, drop_path=drop_path)
        checks.number(above=0, norm_epsilon=norm_epsilon)
        self.dim, self.depth, self.heads, self.mlp_dim = dim, depth, heads, mlp_dim
        self.activation, self.causal, self.impl = activation, causal, impl
        self.dropout, self.drop_path = dropout, drop_path
        self.remat, self.scan = stack.checked_remat(remat), stack.checked_scan(scan)
        self.norm_epsilon, self.layer_scale = norm_epsilon, layer_scale
        self.blocks = [
            TransformerBlock(
                dim,
                heads,
                mlp_dim=mlp_dim,
                causal=causal,
                activation=activation,
                dropout=dropout,
                drop_path=drop_path * i / max(depth - 1, 1),  # from 0 to drop_path, as in timm
                norm_epsilon=norm_epsilon,
                impl=impl,
                layer_scale=layer_scale,
                dtype=self.dtype_policy,
                name=f"block_{i:02d}",
            )
            for i in range(depth)
        ]
        self.norm = layer_norm("norm", self.dtype_policy, norm_epsilon)

    def _build_blocks(self, normed=(None, None)):
        """Builds the blocks, and the final norm for its input shape: `normed`, then `dim`."""
        for layer in self.blocks:
            if not layer.built:
                layer.build((None, None, self.dim))
        if not self.norm.built:
            self.norm.build((*normed, self.dim))  # Keras 3.16 checks the number of axes

    def _transform(self, x, mask=None, training=False):
        """The blocks, without the final norm."""

        def step(block, x):
            return block(x, mask=mask, training=training), None

        return self._through(step, x, training)[0]

    def _through(self, step, x, training=False):
        """`step` with each block in turn, as `flipkit.layers.stack.apply_in_turn` has it."""
        how = {"training": training, "remat": self.remat, "scan": self.scan}
        return stack.apply_in_turn(self.blocks, step, x, **how)

    def layout(self):
        """How a mesh axis "model" may split the weights: ((path pattern, axes), ...)."""
        return TRANSFORMER_LAYOUT

    def _transformer_config(self):
        names = ("dim", "depth", "heads", "mlp_dim", "activation", "dropout", "drop_path")
        names += ("norm_epsilon", "impl", "remat", "layer_scale", "scan")
        return {name: getattr(self, name) for name in names}

    def compute_output_shape(self, input_shape, **kwargs):
        return (input_shape[0], self.dim)
