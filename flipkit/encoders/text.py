"""The text transformer: token ids in, one feature vector per text out."""

from keras import ops

from flipkit import checks
from flipkit.encoders.transformer import TABLE, Transformer, check_choice
from flipkit.errors import ConfigurationError
from flipkit.layers import gather
from flipkit.registry import register


@register
class TextTransformer(Transformer):
    """Text transformer: token ids (batch, length) -> features (batch, dim).

    As the paper's (section 3.1, Table 9): not causal, learned positions, attention to padding.

    Args:
        vocab: rows of the token table.
        length: tokens per text.
        dim, depth, heads, mlp_dim, dropout, drop_path, activation, norm_epsilon, impl, remat,
            layer_scale, scan: as in `ViT`.
        causal: whether a token sees only earlier ones (CLIP) or all (FLIP).
        pool: "first" token (the official FLIP), "last" token, "eos": the token `eos`, "mean" of all
            tokens that are no padding.
        eos: the id whose first place "eos" pools; None is each row's largest id, as CLIP does. A masked
            text keeps it in place of the last token kept, whatever its masker keeps.
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
        check_choice("pool", pool, self.POOLS)

    @classmethod
    def example(cls):
        """A tiny one, for `flipkit.testing`: texts of 8 out of 50 words."""
        return cls(50, 8, dim=16, depth=1, heads=2)

    def build(self, input_shape=None):
        shape = (self.vocab, self.dim)
        self.table = self.add_weight(shape=shape, initializer=TABLE, name="token_embedding")
        shape = (self.length, self.dim)
        self.position = self.add_weight(shape=shape, initializer=TABLE, name="position")
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
        """The place where "eos" pools: (batch, 1)."""
        found = ids if self.eos is None else ops.cast(ops.equal(ids, self.eos), "int32")
        return ops.cast(ops.argmax(found, axis=1), "int32")[:, None]

    def get_config(self):
        names = ("vocab", "length", "causal", "pool", "eos", "mask_padding", "padding")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **self._transformer_config(), **own}


def _holding(place, keep):
    """Ids (batch, kept), ascending; `place` (batch, 1) replaces the last one if it is missing."""
    there = ops.any(ops.equal(keep, place), axis=1, keepdims=True)
    last = ops.where(there, keep[:, -1:], place)
    return ops.sort(ops.concatenate([keep[:, :-1], last], axis=1), axis=1)
