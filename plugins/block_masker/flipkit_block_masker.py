"""A masker that keeps whole blocks of neighbouring patches; the plugin to copy for your own."""

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with


@keras.saving.register_keras_serializable(package="flipkit_block_masker")
class BlockMasker(flipkit.Masker):
    """Keeps blocks of `block` x `block` patches, drawn at random and the last one cut to fit.

    The kept patches are contiguous, so a tower sees whole details instead of scattered patches. With
    `block=1` it is the random masker. Blocks at the right and lower edge are smaller where `block`
    does not divide the grid. A text is a grid of one row, of which it keeps runs of `block` tokens.

    Args:
        block: side of a block, in patches.
    """

    def __init__(self, block=2, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(block, int) or block < 1:
            raise flipkit.ConfigurationError(
                f"Expected `block` to be an int of patches, at least 1. Received: block={block!r}"
            )
        self.block = block

    def call(self, x, keep, *, grid, seed):
        rows, columns = grid
        across = -(-columns // self.block)  # blocks in a row, the last one perhaps cut
        blocks = -(-rows // self.block) * across
        row, column = (ops.arange(n, dtype="int32") // self.block for n in grid)
        block_of = ops.reshape(row[:, None] * across + column, (-1,))  # (patches,)

        draws = seed.uniform((ops.shape(x)[0], blocks + rows * columns))
        turn = ops.argsort(
            ops.argsort(draws[:, :blocks], axis=1), axis=1
        )  # a block's place in line
        # Below half, so that float32 cannot round a patch of one block up to the next block's turn.
        tie_break = 0.5 * draws[:, blocks:]
        scores = ops.cast(ops.take(turn, block_of, axis=1), "float32") + tie_break
        return flipkit.maskers.keep_lowest(scores, keep)

    def get_config(self):
        return {**super().get_config(), "block": self.block}


@flipkit.hookimpl
def flipkit_maskers():
    """The name in recipes: `masker="block"`."""
    return {"block": BlockMasker}
