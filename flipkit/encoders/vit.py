"""The vision transformer: pixels or patches in, one feature vector per picture out."""

import keras
from keras import ops

from flipkit import checks
from flipkit.checks import Size, sides
from flipkit.encoders.transformer import TABLE, Transformer, check_choice
from flipkit.errors import ConfigurationError
from flipkit.layers import (
    AttentionPool,
    gather,
    layer_norm,
    patchify,
    resample_positions,
    sincos_positions,
)
from flipkit.registry import register


@register
class ViT(Transformer):
    """Vision transformer: pixels (batch, height, width, channels) -> features (batch, dim).

    The defaults are FLIP's (arXiv 2212.00794, section 3.1 and Table 9): no norm before the blocks, final
    norm before the pooling. CLIP's is `positions="learned", class_position=True, patch_bias=False,
    pre_norm=True, pool="class", norm_epsilon=1e-5`, SigLIP's `positions="learned", class_token=False,
    pool="map"`.

    Args:
        image_size: pixels, one side or (height, width); divisible by `patch_size`.
        patch_size: pixels per side of a patch.
        dim, depth, heads: width, blocks, attention heads.
        mlp_dim: hidden units of a block's MLP; None is 4 * dim.
        positions: "sincos" (fixed, 2-D; FLIP) or "learned".
        class_token: whether a learned token goes before the patches.
        class_position: whether it has a learned position, the first row of the table.
        patch_bias: whether the patch embedding has a bias.
        pre_norm: whether a LayerNorm comes before the blocks, as in CLIP.
        pool: "mean" of all tokens, the class token included as the official FLIP does;
            "mean_patches" leaves it out; "class" is the class token alone; "map" is
            `flipkit.layers.AttentionPool`, as in SigLIP.
        final_norm: "before_pool", on every token, or "after_pool", on the pooled one.
        dropout, drop_path, activation, norm_epsilon, impl, layer_scale: as in
            `flipkit.TransformerBlock`; drop_path grows from 0 at the first block to its value at the last.
        remat: which of a block's activations the backward pass keeps; it computes the others again. "none":
            all that it needs. "dots": products with weights, so that it repeats norms, activations and
            attention's scores, whose number is the square of the tokens. "block": the block's input alone,
            for about a third more FLOPs. True and False are "block" and "none". "dots" needs JAX.
        scan: whether the blocks are one `jax.lax.scan`, so that a deep tower compiles one block. Weights
            keep their names and shapes: each step stacks them, which takes memory for a copy of the blocks'
            weights and one of their gradient. Outputs and gradients are equal but for rounding, and masks
            of dropout are equal inside `flipkit.random.seed_scope`. Needs JAX, and blocks of one structure.

    Call arguments:
        x: float pixels (batch, height, width, channels), or patches (batch, kept, pixels), already
            normalised.
        ids: int32 (batch, kept), which patches to see (of an image) or which ones `x` holds (patches);
            None is all of them.
        grid: (rows, columns) of the picture's patches if it has another size than `image_size`: each
            then has the position of its place in the picture, resampled from the tower's own, fixed or
            learned (`flipkit.layers.resample_positions`); the class token keeps its own. None is `grid`.
    """

    POSITIONS = ("sincos", "learned")
    POOLS = ("mean", "mean_patches", "class", "map")
    FINAL_NORMS = ("before_pool", "after_pool")

    def __init__(
        self,
        image_size: Size = 224,
        patch_size=16,
        dim=768,
        depth=12,
        heads=12,
        *,
        positions="sincos",
        class_token=True,
        class_position=False,
        patch_bias=True,
        pre_norm=False,
        pool="mean",
        final_norm="before_pool",
        **kwargs,
    ):
        kwargs.setdefault("name", "image")
        super().__init__(dim, depth, heads, **kwargs)
        checks.whole(patch_size=patch_size)
        self.image_size = checks.as_size(image_size)
        self.patch_size = patch_size
        self.positions, self.class_token, self.pool = positions, class_token, pool
        self.class_position, self.patch_bias = class_position, patch_bias
        self.pre_norm, self.final_norm = pre_norm, final_norm
        check_choice("positions", positions, self.POSITIONS)
        check_choice("pool", pool, self.POOLS)
        check_choice("final_norm", final_norm, self.FINAL_NORMS)
        if class_position and not (class_token and positions == "learned"):
            raise ConfigurationError(
                'class_position=True needs class_token=True and positions="learned". Received: '
                f"{class_token=}, {positions=}"
            )
        if pool == "class" and not class_token:
            raise ConfigurationError(
                'pool="class" needs class_token=True. Received: class_token=False'
            )
        height, width = self.size
        if height % patch_size or width % patch_size:
            below = (height if height % patch_size else width) // patch_size * patch_size
            raise ConfigurationError(
                f"Expected an image size divisible by the patch size. Received: {image_size=}, "
                f"{patch_size=}; the nearest sizes are {[below, below + patch_size]}"
            )
        if positions == "sincos" and dim % 4:
            raise ConfigurationError(
                f"Sine-cosine positions need a dim divisible by 4. Received: {dim=}"
            )
        policy = self.dtype_policy
        self.patch_embed = keras.layers.Dense(
            dim, use_bias=patch_bias, dtype=policy, name="patch_embed"
        )
        if pre_norm:
            self.first_norm = layer_norm("pre_norm", policy, self.norm_epsilon)
        if pool == "map":
            self.attention_pool = AttentionPool(
                dim,
                heads,
                mlp_dim=self.mlp_dim,
                activation=self.activation,
                norm_epsilon=self.norm_epsilon,
                impl=self.impl,
                dtype=policy,
                name="pool",
            )

    @classmethod
    def example(cls):
        """A tiny one, for `flipkit.testing`: 16 patches of a picture of 32 x 32 pixels."""
        return cls(32, 8, dim=16, depth=1, heads=2)

    @property
    def size(self) -> tuple[int, int]:
        """Pixels: (height, width)."""
        return sides(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches; an encoder with a grid can skip patches."""
        height, width = self.size
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        return self.grid[0] * self.grid[1]

    def build(self, input_shape=None):
        if not self.patch_embed.built:
            self.patch_embed.build((None, 3 * self.patch_size**2))
        if self.class_token:
            self.token = self.add_weight(
                shape=(1, 1, self.dim), initializer=TABLE, name="class_token"
            )
        if self.positions == "learned":
            shape = (self.class_position + self.patches, self.dim)
            self.position = self.add_weight(shape=shape, initializer=TABLE, name="position")
        else:
            self.position = sincos_positions(self.grid, self.dim)
        if self.pre_norm and not self.first_norm.built:
            self.first_norm.build((None, None, self.dim))
        self._build_blocks((None,) if self.final_norm == "after_pool" else (None, None))
        if self.pool == "map" and not self.attention_pool.built:
            self.attention_pool.build((None, None, self.dim))

    def call(self, x, ids=None, training=False, grid=None):
        return self.pooled(self.tokens(x, ids=ids, training=training, grid=grid))

    def tokens(self, x, ids=None, training=False, grid=None):
        """The tokens that `call` pools, (batch, tokens, dim): the class token first, where there is one."""
        x = self._transform(self._embed(x, ids, grid), training=training)
        return self.norm(x) if self.final_norm == "before_pool" else x

    def scores(self, x, ids=None, grid=None):
        """The attention to each patch, the mean over heads and blocks: float32 (batch, patches).

        From the class token if the tower pools it (A-CLIP, arXiv 2212.08653), else from all tokens alike.
        The shares of a token sum to 1, some of it to the class token.
        """

        def step(block, x):
            seen = block.attention_norm(x)
            asking = seen[:, :1] if self.pool == "class" else seen
            paid = ops.mean(block.attention.shares(seen, queries=asking), axis=(1, 2))
            return block(x), paid  # XLA compiles once what it shares with the attention

        _, paid = self._through(step, self._embed(x, ids, grid))
        paid = paid if self.scan else ops.stack(paid)
        return ops.mean(paid, axis=0)[:, int(self.class_token) :]

    def _embed(self, x, ids, grid):
        """The input of the first block, (batch, tokens, dim)."""
        if len(x.shape) == 4:
            rows, columns = grid or self.grid
            size = (rows * self.patch_size, columns * self.patch_size)
            if tuple(x.shape[1:3]) != size:
                raise ConfigurationError(
                    "Expected pictures of {} x {} pixels. Received: {} x {}. ".format(
                        *size, *x.shape[1:3]
                    )
                    + "Resize them, or set their grid of patches: grid=(rows, columns)."
                )
            x = patchify(x, self.patch_size)
            x = x if ids is None else gather(x, ids)
        kept = x.shape[1]
        x = ops.reshape(x, (-1, x.shape[2]))  # 2-D: faster on XLA:CPU
        x = ops.reshape(self.patch_embed(x), (-1, kept, self.dim))
        patches = self.position[1:] if self.class_position else self.position
        patches = ops.cast(resample_positions(patches, self.grid, grid or self.grid), x.dtype)
        x = x + (patches[None] if ids is None else ops.take(patches, ids, axis=0))
        if self.class_token:
            token = ops.cast(self.token, x.dtype)
            token = token + ops.cast(self.position[0], x.dtype) if self.class_position else token
            token = ops.broadcast_to(token, (ops.shape(x)[0], 1, self.dim))
            x = ops.concatenate([token, x], axis=1)
        return self.first_norm(x) if self.pre_norm else x

    def pooled(self, tokens):
        """The features (batch, dim) of `tokens`."""
        x = self._pool(tokens)
        return self.norm(x) if self.final_norm == "after_pool" else x

    def _pool(self, x):
        if self.pool == "map":
            return self.attention_pool(x)
        if self.pool == "class":
            return x[:, 0]
        first = 1 if self.class_token and self.pool == "mean_patches" else 0
        return ops.mean(x[:, first:], axis=1)

    def get_config(self):
        names = ("image_size", "patch_size", "positions", "class_token", "class_position")
        names += ("patch_bias", "pre_norm", "pool", "final_norm")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **self._transformer_config(), **own}
