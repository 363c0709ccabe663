"""ConvNeXt: an image tower of convolutions, which sees whole pictures and can't skip patches."""

import functools

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with
register = keras.saving.register_keras_serializable(package="flipkit_convnext_encoder")

# All kernels start so in the authors' code.
START = {"class_name": "TruncatedNormal", "config": {"stddev": 0.02}}

# Width of the first stage, and blocks of each: section 3 of arXiv 2201.03545. It has nothing as small as
# "atto", whose sizes are those of ConvNeXt V2 (arXiv 2301.00808).
SIZES = {
    "atto": (40, (2, 2, 6, 2)),
    "tiny": (96, (3, 3, 9, 3)),
    "small": (96, (3, 3, 27, 3)),
    "base": (128, (3, 3, 27, 3)),
    "large": (192, (3, 3, 27, 3)),
}


@register
class ConvNeXt(keras.layers.Layer):
    """ConvNeXt: pixels (batch, height, width, 3) -> features (batch, dim).

    The trunk of Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), up to the pooled and normalised
    features that their classifier reads. Each stage halves the sides (the first divides them by 4) and
    doubles the width. A convolution looks at a patch's neighbours, so that it can skip none: this
    tower has no `grid`, and FLIP refuses to mask it.

    Args:
        width: channels of the first stage; `dim` is that of the last.
        depths: blocks of each stage.
        image_size: pixels, one side or (height, width); divisible by 32 if there are four stages.
        drop_path: rate at which a row skips a block (stochastic depth); it grows from 0 at the first
            block to this at the last.
        layer_scale: initial value of the learned factor of each block's branch.
    """

    def __init__(
        self,
        width=96,
        depths=(3, 3, 9, 3),
        image_size: int | tuple[int, int] = 224,
        *,
        drop_path=0.0,
        layer_scale=1e-6,
        **kwargs,
    ):
        kwargs.setdefault("name", "image")
        super().__init__(**kwargs)
        self.width, self.depths = width, tuple(depths)
        self.image_size = flipkit.checks.as_size(image_size)
        self.drop_path, self.layer_scale = drop_path, layer_scale
        self.dim = width * 2 ** (len(self.depths) - 1)
        stride = 4 * self.dim // width
        if any(side % stride for side in self.size):
            raise flipkit.ConfigurationError(
                f"Expected an image size divisible by {stride}, which {len(self.depths)} stages divide "
                f"it by. Received: image_size={image_size!r}"
            )
        policy, layers = self.dtype_policy, []
        for stage, depth in enumerate(self.depths):
            channels, side = width * 2**stage, 2 if stage else 4
            norm = flipkit.layers.layer_norm(f"stage_{stage}_norm", policy)
            shrink = keras.layers.Conv2D(
                channels,
                side,
                strides=side,
                data_format="channels_last",
                kernel_initializer=START,
                dtype=policy,
                name=f"stage_{stage}_shrink",
            )
            layers += [norm, shrink] if stage else [shrink, norm]
            for i in range(depth):
                before = sum(self.depths[:stage]) + i
                layers.append(
                    ConvNeXtBlock(
                        channels,
                        drop_path=drop_path * before / max(sum(self.depths) - 1, 1),
                        layer_scale=layer_scale,
                        dtype=policy,
                        name=f"stage_{stage}_block_{i:02d}",
                    )
                )
        self.trunk = layers
        self.norm = flipkit.layers.layer_norm("norm", policy)

    @classmethod
    def example(cls):
        """A tiny one, for `flipkit.testing`."""
        return cls(4, (1, 1), 16)

    @property
    def size(self) -> tuple[int, int]:
        """Pixels: (height, width)."""
        return flipkit.checks.sides(self.image_size)

    def build(self, input_shape=None):
        shape = (None, *self.size, 3)
        for layer in self.trunk:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if not self.norm.built:
            self.norm.build((None, self.dim))

    def call(self, x, training=False):
        for layer in self.trunk:
            x = layer(x)  # Keras passes `training` down to the blocks
        return self.norm(ops.mean(x, axis=(1, 2)))

    def layout(self):
        """How a mesh axis "model" may split the weights: ((path pattern, axes), ...)."""
        return (("up/kernel", (None, "model")), ("down/kernel", ("model", None)))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.dim)

    def get_config(self):
        names = ("width", "depths", "image_size", "drop_path", "layer_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class ConvNeXtBlock(keras.layers.Layer):
    """(batch, height, width, dim) -> the same: x + gamma * mlp(norm(convolution 7 x 7 of x)).

    The convolution mixes places, each channel alone; the MLP of 4 * dim units mixes channels.
    """

    def __init__(self, dim, *, drop_path=0.0, layer_scale=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.drop_path, self.layer_scale = dim, drop_path, layer_scale
        policy = self.dtype_policy
        dense = functools.partial(keras.layers.Dense, kernel_initializer=START, dtype=policy)
        self.mix = keras.layers.DepthwiseConv2D(
            7,
            padding="same",
            data_format="channels_last",
            depthwise_initializer=START,
            dtype=policy,
            name="mix",
        )
        self.norm = flipkit.layers.layer_norm("norm", policy)
        self.up, self.down = dense(4 * dim, name="up"), dense(dim, name="down")
        self.drop = None  # a rate of 0 makes no layer and no state
        if drop_path:  # by row: the branches that a row skips do not depend on its batch
            self.drop = flipkit.Dropout(drop_path, (None, 1, 1, 1), dtype=policy, name="drop_path")

    def build(self, input_shape):
        start = keras.initializers.Constant(self.layer_scale)
        self.gamma = self.add_weight(shape=(self.dim,), initializer=start, name="gamma")
        hidden = (*input_shape[:-1], 4 * self.dim)
        for layer in (self.mix, self.norm, self.up, self.down, self.drop):
            if layer is not None and not layer.built:
                layer.build(hidden if layer is self.down else input_shape)

    def call(self, x, training=False):
        branch = ops.gelu(self.up(self.norm(self.mix(x))), approximate=False)
        branch = self.down(branch) * self.gamma
        return x + (self.drop(branch, training=training) if self.drop else branch)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        names = ("dim", "drop_path", "layer_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@flipkit.hookimpl
def flipkit_encoders():
    """The names in recipes: `FLIP("convnext_tiny", ..., mask_ratio=0)`."""
    return {f"convnext_{name}": functools.partial(ConvNeXt, *size) for name, size in SIZES.items()}
