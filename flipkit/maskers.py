"""Maskers: which tokens to keep. FLIP computes how many."""

import keras
from keras import ops

from flipkit import registry
from flipkit.errors import ConfigurationError
from flipkit.registry import register


class Masker(keras.layers.Layer):
    """Chooses the tokens that stay: a subclass writes `call`.

    Call arguments (all but `x` by keyword, as Keras demands of what is no tensor):
        x: uint8 patches (batch, patches, pixels) of an image, or int32 token ids (batch, length).
        keep: Python int, how many to keep; at least 1. Static, so one program per mask ratio.
        grid: (rows, columns) of the patches, or (1, length) for text.
        seed: `flipkit.Seed`; draw with `seed.uniform((batch, ...))`.

    Returns:
        int32 (batch, keep): ids of the tokens kept, ascending, no id twice.

    `needs` declares what a masker reads: () means only shapes, so that the host may draw masks too;
    "pixels" or "words" that it reads `x`, which is patches or token ids; "tower" that it calls the image
    tower, so that it works only in a model.
    """

    needs: tuple[str, ...] = ()

    def prepare(self, model):
        """Called with the model before `build`: store here what the masker needs of it.

        Towers, preprocessing and tokenizer are there; towers may have no variables yet. The tokenizer may
        have no vocabulary yet: in `flipkit plan`, which computes only shapes, and while a `.keras` file is
        read, which loads the vocabulary after `build` and the masker's variables after that. A run trains
        the tokenizer first. So values that depend on the vocabulary belong into a variable
        (`flipkit.random.start_with`), or `call` looks them up.
        """

    def call(self, x, keep, *, grid, seed):
        raise NotImplementedError(f"{type(self).__name__} defines no call(x, keep, *, grid, seed)")

    def compute_output_spec(self, x, keep, **kwargs):
        return keras.KerasTensor((x.shape[0], keep), "int32")


@register
class RandomMasker(Masker):
    """Keeps tokens uniformly at random, the same number in every row (FLIP, arXiv 2212.00794, 3)."""

    def call(self, x, keep, *, grid, seed):
        return keep_lowest(seed.uniform((ops.shape(x)[0], x.shape[1])), keep)


@register
class PrioritisedMasker(Masker):
    """Drops padding first, then words at random: a text masker (FLIP, arXiv 2212.00794, Table 1c).

    Id 0 is padding. A row with more words than `keep` loses some of them; a row with fewer keeps all of
    them and some padding, drawn at random too.
    """

    needs = ("words",)

    def call(self, x, keep, *, grid, seed):
        if len(x.shape) != 2:
            raise ConfigurationError(
                "The masker 'prioritised' drops padding, which only texts have: set it as "
                f"text_masker. Received: patches of shape {tuple(x.shape)}"
            )
        scores = seed.uniform((ops.shape(x)[0], x.shape[1]))  # below 1: every word goes first
        return keep_lowest(scores + ops.cast(ops.equal(x, 0), scores.dtype), keep)


def complementary_views(rows: int, patches: int, keep: int, seed):
    """Random views of the patches that together hold all of them: int32 (rows, views, keep).

    Ids ascend within a view. There are ceil(patches / keep) views, and each patch is in one of them;
    where `keep` does not divide `patches`, patches of the first view fill up the last. A single view is
    what `RandomMasker` keeps of a row.

    Args:
        seed: `flipkit.Seed`; its `rows`, where given, are the numbers of these rows.
    """
    order = ops.argsort(seed.uniform((rows, patches)), axis=1)
    views = -(-patches // keep)
    order = ops.concatenate([order, order[:, : views * keep - patches]], axis=1)
    ids = ops.sort(ops.reshape(order, (rows, views, keep)), axis=2)
    return ops.cast(ids, "int32")


def kept_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` remain at a mask ratio: rounded, and at least one."""
    return max(1, round(tokens * (1 - ratio)))


def keep_lowest(scores, keep: int):
    """Ids of the `keep` lowest of scores (batch, tokens): int32 (batch, keep), ascending."""
    order = ops.argsort(scores, axis=1)
    return ops.cast(ops.sort(order[:, :keep], axis=1), "int32")


def get(identifier) -> Masker | None:
    """The masker that a name, object or config describes; None stays None."""
    return registry.get("maskers", identifier, Masker)
