"""MAE's decoder: predicts dropped patches from a tower's tokens of the kept ones."""

import keras
from keras import ops

from flipkit import checks, registry
from flipkit.errors import ConfigurationError
from flipkit.layers import (
    TransformerBlock,
    gather,
    layer_norm,
    resample_positions,
    sincos_positions,
)
from flipkit.maskers import keep_lowest
from flipkit.registry import register


@register
class MAEDecoder(keras.layers.Layer):
    """Predicts the pixels of dropped patches (MAE, arXiv 2111.06377; FLIP, Table 1f).

    The decoder puts the kept tokens back into their places and a learned mask token into those of the
    dropped patches. It adds positions, applies a few blocks, and maps each dropped patch's token to its
    pixels.

    Args:
        dim, depth, heads: width, blocks and attention heads: "small" in FLIP, which has no numbers;
            the defaults are half of MAE's width and half of its depth.
        weight: factor of its loss before it is added to the contrastive one; FLIP adds it as it is.
        normalise: whether the target of each patch is its pixels less their mean and over their standard
            deviation, as in MAE and FLIP.
    """

    def __init__(self, dim=256, depth=4, heads=8, *, weight=1.0, normalise=True, **kwargs):
        kwargs.setdefault("name", "reconstruction")
        super().__init__(**kwargs)
        checks.whole(dim=dim, depth=depth, heads=heads)
        checks.number(least=0, weight=weight)
        if dim % 4:
            raise ConfigurationError(
                f"Sine-cosine positions need a dim divisible by 4. Received: {dim=}"
            )
        self.dim, self.depth, self.heads = dim, depth, heads
        self.weight, self.normalise = weight, normalise
        policy = self.dtype_policy
        self.embed = keras.layers.Dense(dim, dtype=policy, name="embed")
        self.blocks = [
            TransformerBlock(dim, heads, dtype=policy, name=f"block_{i:02d}") for i in range(depth)
        ]
        self.norm = layer_norm("norm", policy)

    def build(self, tokens_shape, grid, pixels):
        """Creates the variables.

        Args:
            tokens_shape: (batch, tokens, width) of the tower's tokens.
            grid: (rows, columns) of all patches.
            pixels: numbers per patch.
        """
        self.mask_token = self.add_weight(
            shape=(1, 1, self.dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="mask_token",
        )
        self.grid, self.position = grid, sincos_positions(grid, self.dim)
        self.pixels = keras.layers.Dense(pixels, dtype=self.dtype_policy, name="pixels")
        self.embed.build((None, tokens_shape[-1]))
        for layer in [*self.blocks, self.norm]:
            layer.build((None, None, self.dim))
        self.pixels.build((None, self.dim))

    def call(self, tokens, ids, training=False, grid=None):
        """Tokens (batch, [class token +] kept, width) -> pixels (batch, dropped, pixels).

        Args:
            tokens: the tower's tokens of the kept patches, the class token first where it has one.
            ids: int32 (batch, kept), the patches kept.
            training: passed on to the blocks.
            grid: (rows, columns) of all patches if a picture has another size, as in `flipkit.ViT`.
        """
        position = resample_positions(self.position, self.grid, grid or self.grid)
        kept, patches = ids.shape[1], len(position)
        first = tokens.shape[1] - kept
        dropped = dropped_ids(ids, patches)
        x = self.embed(tokens)
        masks = ops.broadcast_to(
            ops.cast(self.mask_token, x.dtype), (ops.shape(x)[0], patches - kept, self.dim)
        )
        # Kept tokens, then mask tokens: sorting by their ids puts them in place.
        order = ops.argsort(ops.concatenate([ids, dropped], axis=1), axis=1)
        places = gather(ops.concatenate([x[:, first:], masks], axis=1), order)
        places = places + ops.cast(position, x.dtype)[None]
        x = ops.concatenate([x[:, :first], places], axis=1)
        for block in self.blocks:
            x = block(x, training=training)
        return self.pixels(self.norm(gather(x[:, first:], dropped)))

    def error(self, tokens, patches, normalise, ids, grid=None):
        """The loss of each image, float32 (batch,), in training; None if nothing was dropped.

        Args:
            tokens, ids, grid: as in `call`.
            patches: uint8 (batch, patches, pixels), all of the image.
            normalise: the function that normalised the tower's pixels.
        """
        if patches is None:
            raise ConfigurationError(
                "Patches that the host has dropped can't be reconstructed: give images with image_ids "
                "instead of patches, or set reconstruction=None."
            )
        if ids.shape[1] == patches.shape[1]:
            return None
        predicted = self(tokens, ids, training=True, grid=grid)
        dropped = gather(patches, dropped_ids(ids, patches.shape[1]))
        return self.loss(predicted, normalise(dropped))

    def loss(self, predicted, pixels):
        """Mean squared error of each image: float32 (batch,).

        Args:
            predicted: (batch, dropped, pixels), as `call` returns it.
            pixels: the same of the image, as the tower would have seen it.
        """
        pixels = ops.cast(pixels, "float32")
        if self.normalise:
            pixels = pixels - ops.mean(pixels, axis=2, keepdims=True)
            # MAE divides by the number of pixels less one, as torch.var does.
            squares = ops.sum(ops.square(pixels), axis=2, keepdims=True)
            pixels = pixels / ops.sqrt(squares / (pixels.shape[2] - 1) + 1e-6)
        error = ops.square(ops.cast(predicted, "float32") - pixels)  # float32, as every loss
        return ops.mean(error, axis=(1, 2))

    def get_config(self):
        names = ("dim", "depth", "heads", "weight", "normalise")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def dropped_ids(ids, patches: int):
    """The patches that are not among ids (batch, kept): int32 (batch, patches - kept), ascending."""
    kept = ops.any(ops.equal(ids[:, :, None], ops.arange(patches, dtype=ids.dtype)), axis=1)
    return keep_lowest(ops.cast(kept, "int32"), patches - ids.shape[1])


def get(identifier) -> MAEDecoder | None:
    """The decoder that an object or a config describes; None stays None."""
    if identifier is not None and registry.is_serialized(identifier):
        identifier = registry.deserialize(identifier)
    if identifier is None or isinstance(identifier, MAEDecoder):
        return identifier
    raise ConfigurationError(
        f"Expected reconstruction=flipkit.MAEDecoder(...) or None. Received: {identifier!r}"
    )
