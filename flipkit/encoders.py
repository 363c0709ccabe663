"""The image and text towers: tokens in, one feature vector per row out."""

import math

import keras
from keras import ops
from keras.src.backend.common import global_state  # Keras has no public word for it

from flipkit import checks, registry
from flipkit.errors import ConfigurationError, nearest
from flipkit.layers import (
    AttentionPool,
    TransformerBlock,
    gather,
    layer_norm,
    patchify,
    resample_positions,
    sincos_positions,
)
from flipkit.random import current_seed, seed_scope
from flipkit.registry import register
from flipkit.sizes import Size, is_size, sides

# How weights may be split over a mesh axis named "model": (path pattern, axes of the variable).
TRANSFORMER_LAYOUT = (
    ("attention/query/kernel", (None, "model")),
    ("attention/key/kernel", (None, "model")),
    ("attention/value/kernel", (None, "model")),
    ("attention/out/kernel", ("model", None)),
    ("mlp/up/kernel", (None, "model")),
    ("mlp/down/kernel", ("model", None)),
)
_TABLE = keras.initializers.RandomNormal(stddev=0.02)  # class token, text positions, token table


def _check_choice(name, value, known):
    if value not in known:
        raise ConfigurationError(f"Unknown {name}={value!r}. {nearest(str(value), known)}")


class _Transformer(keras.layers.Layer):
    """A stack of blocks and a final norm: what the two towers share."""

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
        remat=False,
        layer_scale=None,
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
        self.dropout, self.drop_path, self.remat = dropout, drop_path, remat
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

    def _build_blocks(self):
        for layer in [*self.blocks, self.norm]:
            if not layer.built:
                layer.build((None, None, self.dim))

    def _transform(self, x, mask=None, training=False):
        """The blocks, without the final norm."""
        for block in self.blocks:
            if self.remat and training:
                # Activations inside a block are computed again in the backward pass: with the same
                # seed, drawn outside, since no state may change inside.
                seed = current_seed() or block.seed()

                def again(x, block=block, seed=seed):
                    with seed_scope(seed):
                        return block(x, mask=mask, training=True)

                x = keras.remat(again)(x)
            else:
                x = block(x, mask=mask, training=training)
        return x

    def layout(self):
        """How a mesh axis "model" may split the weights: ((path pattern, axes), ...)."""
        return TRANSFORMER_LAYOUT

    def _transformer_config(self):
        names = ("dim", "depth", "heads", "mlp_dim", "activation", "dropout", "drop_path")
        names += ("norm_epsilon", "impl", "remat", "layer_scale")
        return {name: getattr(self, name) for name in names}

    def compute_output_shape(self, input_shape, **kwargs):
        return (input_shape[0], self.dim)


@register
class ViT(_Transformer):
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
        remat: whether a block's activations are computed again in the backward pass instead of kept.

    Call arguments:
        x: float pixels (batch, height, width, channels), or patches (batch, kept, pixels), already
            normalised.
        ids: int32 (batch, kept), which patches to see (of an image) or which ones `x` holds (patches);
            None is all of them.
        grid: (rows, columns) of the picture's patches where it has another size than `image_size`: each
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
        if not is_size(image_size):
            raise ConfigurationError(
                f"Expected pixels, one side or (height, width). Received: {image_size=}"
            )
        checks.whole(patch_size=patch_size)
        self.image_size = tuple(image_size) if isinstance(image_size, list) else image_size
        self.patch_size = patch_size
        self.positions, self.class_token, self.pool = positions, class_token, pool
        self.class_position, self.patch_bias = class_position, patch_bias
        self.pre_norm, self.final_norm = pre_norm, final_norm
        _check_choice("positions", positions, self.POSITIONS)
        _check_choice("pool", pool, self.POOLS)
        _check_choice("final_norm", final_norm, self.FINAL_NORMS)
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
        """(rows, columns) of patches; that it has one tells that this encoder can skip patches."""
        height, width = self.size
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return self.grid[0] * self.grid[1]

    def build(self, input_shape=None):
        if not self.patch_embed.built:
            self.patch_embed.build((None, 3 * self.patch_size**2))
        if self.class_token:
            self.token = self.add_weight(
                shape=(1, 1, self.dim), initializer=_TABLE, name="class_token"
            )
        if self.positions == "learned":
            shape = (self.class_position + self.patches, self.dim)
            self.position = self.add_weight(shape=shape, initializer=_TABLE, name="position")
        else:
            self.position = sincos_positions(self.grid, self.dim)
        if self.pre_norm and not self.first_norm.built:
            self.first_norm.build((None, None, self.dim))
        self._build_blocks()
        if self.pool == "map" and not self.attention_pool.built:
            self.attention_pool.build((None, None, self.dim))

    def call(self, x, ids=None, training=False, grid=None):
        return self.pooled(self.tokens(x, ids=ids, training=training, grid=grid))

    def tokens(self, x, ids=None, training=False, grid=None):
        """What `call` pools, (batch, tokens, dim): the class token's first, where there is one."""
        x = self._transform(self._embed(x, ids, grid), training=training)
        return self.norm(x) if self.final_norm == "before_pool" else x

    def scores(self, x, ids=None, grid=None):
        """How much attention each patch is paid, the mean over heads and blocks: float32 (batch, patches).

        By the class token where that is what is pooled (A-CLIP, arXiv 2212.08653), elsewhere by all tokens
        alike. Each shares out 1, some of it to the class token.
        """
        x, paid = self._embed(x, ids, grid), []
        for block in self.blocks:
            seen = block.attention_norm(x)
            asking = seen[:, :1] if self.pool == "class" else seen
            paid.append(ops.mean(block.attention.shares(seen, queries=asking), axis=(1, 2)))
            x = block(x)  # what it has in common with the shares is compiled once
        return ops.mean(ops.stack(paid), axis=0)[:, int(self.class_token) :]

    def _embed(self, x, ids, grid):
        """What the first block gets, (batch, tokens, dim)."""
        if len(x.shape) == 4:
            rows, columns = grid or self.grid
            size = (rows * self.patch_size, columns * self.patch_size)
            if tuple(x.shape[1:3]) != size:
                raise ConfigurationError(
                    "Expected pictures of {} x {} pixels. Received: {} x {}. ".format(
                        *size, *x.shape[1:3]
                    )
                    + "Resize them, or say of which grid of patches they are: grid=(rows, columns)."
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


@register
class TextTransformer(_Transformer):
    """Text transformer: token ids (batch, length) -> features (batch, dim).

    As the paper's (section 3.1, Table 9): not causal, learned positions, padding is attended to.

    Args:
        vocab: rows of the token table.
        length: tokens per text.
        dim, depth, heads, mlp_dim, dropout, drop_path, activation, norm_epsilon, impl, remat,
            layer_scale: as in `ViT`.
        causal: whether a token sees only earlier ones (CLIP) or all (FLIP).
        pool: "first" token (the official FLIP), "last" token, "eos": the token `eos`, "mean" of all
            tokens that are no padding.
        eos: id that "eos" looks for, its first place; None is each row's largest id, as CLIP does. A
            masked text keeps it, instead of the last token kept, whatever its masker says.
        mask_padding: whether padding is hidden from attention.
        padding: the id of padding.

    Call arguments:
        ids: int32 (batch, length).
        keep: int32 (batch, kept), which tokens to see; None is all of them.
    """

    POOLS = ("first", "last", "eos", "mean")

    def __init__(
        self,
        vocab=30_522,
        length=32,
        dim=512,
        depth=12,
        heads=8,
        *,
        causal=False,
        pool="first",
        eos=None,
        mask_padding=False,
        padding=0,
        **kwargs,
    ):
        kwargs.setdefault("name", "text")
        super().__init__(dim, depth, heads, causal=causal, **kwargs)
        checks.whole(vocab=vocab, length=length)
        self.vocab, self.length = vocab, length
        self.pool, self.eos = pool, eos
        self.mask_padding, self.padding = mask_padding, padding
        _check_choice("pool", pool, self.POOLS)

    @classmethod
    def example(cls):
        """A tiny one, for `flipkit.testing`: texts of 8 out of 50 words."""
        return cls(50, 8, dim=16, depth=1, heads=2)

    def build(self, input_shape=None):
        shape = (self.vocab, self.dim)
        self.table = self.add_weight(shape=shape, initializer=_TABLE, name="token_embedding")
        shape = (self.length, self.dim)
        self.position = self.add_weight(shape=shape, initializer=_TABLE, name="position")
        self._build_blocks()

    def call(self, ids, keep=None, training=False):
        if ids.shape[1] > self.length:
            raise ConfigurationError(
                f"Expected at most {self.length} ids a text. Received: {ids.shape[1]}"
            )
        position = ops.cast(self.position, self.compute_dtype)[None, : ids.shape[1]]
        if keep is not None:
            keep = _holding(self._end(ids), keep) if self.pool == "eos" else keep
            ids, position = gather(ids, keep), ops.take(position[0], keep, axis=0)
        x = ops.cast(ops.take(self.table, ids, axis=0), self.compute_dtype) + position
        mask = ops.not_equal(ids, self.padding) if self.mask_padding else None
        x = self.norm(self._transform(x, mask=mask, training=training))
        if self.pool == "first":
            return x[:, 0]
        if self.pool == "last":
            return x[:, -1]
        if self.pool == "mean":
            words = ops.cast(ops.not_equal(ids, self.padding), x.dtype)[..., None]
            return ops.sum(x * words, axis=1) / ops.maximum(ops.sum(words, axis=1), 1)
        return ops.squeeze(gather(x, self._end(ids)), axis=1)

    def _end(self, ids):
        """Where "eos" pools: (batch, 1)."""
        found = ids if self.eos is None else ops.cast(ops.equal(ids, self.eos), "int32")
        return ops.cast(ops.argmax(found, axis=1), "int32")[:, None]

    def get_config(self):
        names = ("vocab", "length", "causal", "pool", "eos", "mask_padding", "padding")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **self._transformer_config(), **own}


def _holding(place, keep):
    """Ids (batch, kept), ascending, with `place` (batch, 1) in the last one's stead if it is missing."""
    there = ops.any(ops.equal(keep, place), axis=1, keepdims=True)
    last = ops.where(there, keep[:, -1:], place)
    return ops.sort(ops.concatenate([keep[:, :-1], last], axis=1), axis=1)


def get(identifier):
    """The encoder that a name, object or config means."""
    return registry.get("encoders", identifier, keras.layers.Layer)


def weights(encoder) -> int:
    """How many numbers the encoder has, learned or frozen."""
    return sum(math.prod(variable.shape) for variable in encoder.weights)


def shape_only(encoder):
    """A copy of `encoder` with shapes and no memory, for counting."""
    with registry.without_tensorflow():
        copy = type(encoder).from_config(encoder.get_config())
    # Keras 3.15 keeps a list of variables that wait for their values, and gives all of them theirs at
    # the end of the next StatelessScope: it would hold the copy, and fill it while a model is built.
    waiting = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    try:
        with keras.StatelessScope(initialize_variables=False):
            copy.build(None)
    finally:
        del waiting[before:]
    return copy
