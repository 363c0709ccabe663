"""Maskers of texts: they keep the start and the end, then words in an order of their own, then padding."""

import functools

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
import numpy as np
from keras import ops

from flipkit_text_maskers.words import ending_class, word_class

register = keras.saving.register_keras_serializable(package="flipkit_text_maskers")


class WordMasker(flipkit.Masker):
    """Keeps words by the `scores` of a subclass, the lowest first; padding when no word is left.

    It keeps the tokenizer's start and end before any word, as open_clip's masks do, so that a tower that
    pools at one of them finds it. Tokens after the end are padding; without an end it is the tokenizer's
    `pad`, without a tokenizer id 0. It keeps the first tokens of the padding.
    """

    needs = ("words",)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._tokenizer = lambda: None  # there is none outside a model

    def prepare(self, model):
        self._tokenizer = lambda: model.tokenizer

    def scores(self, x, words, room, seed):
        """Token ids, int32 (batch, length) -> float32 (batch, length), of which only the words' are used.

        Args:
            words: bool (batch, length), which tokens are words: neither start, end nor padding.
            room: float32 (batch, 1), how many words to keep of a text that has as many.
            seed: `flipkit.Seed`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no scores(x, words, room, seed)")

    def call(self, x, keep, *, grid, seed):
        if len(x.shape) != 2:
            raise flipkit.ConfigurationError(
                f"{type(self).__name__} keeps words, which only texts have: set it as text_masker. "
                f"Received: patches of shape {tuple(x.shape)}"
            )
        start, end, padding = marks(x, self._tokenizer() or flipkit.Tokenizer())
        room = keep - ops.sum(ops.cast(start | end, "float32"), axis=1, keepdims=True)
        scores = self.scores(x, ~(start | end | padding), room, seed)
        scores = ops.where(padding, np.inf, scores)
        return flipkit.maskers.keep_lowest(
            ops.where(end, -2.0, ops.where(start, -1.0, scores)), keep
        )


def marks(x, tokenizer):
    """Which ids (batch, length) are the start, the end and padding: bool (batch, length) each."""
    nowhere = ops.zeros_like(x, "bool")
    start = nowhere if tokenizer.start is None else ops.equal(x, tokenizer.start)
    if tokenizer.end is None:
        return start, nowhere, ops.equal(x, tokenizer.pad)
    end = ops.equal(x, tokenizer.end)
    ends = ops.cumsum(ops.cast(end, "int32"), axis=1)  # SigLIP's tokenizer pads with its end
    end = end & ops.equal(ends, 1)
    return start & ops.equal(ends, 0), end, ops.greater(ends, 0) & ~end


@register
class TruncateMasker(WordMasker):
    """Keeps the first words: truncation (CLIPA, Li et al., NeurIPS 2023, arXiv 2305.07017).

    As with a tokenizer of fewer ids: where a text has an end, that is the last one kept.
    """

    expected_failures = {
        "draws_anew_at_every_step": "the words that it keeps depend on the text alone"
    }

    def scores(self, x, words, room, seed):
        return place_among(words)


@register
class WordBlockMasker(WordMasker):
    """Keeps a run of words at a random place: block masking (CLIPA, arXiv 2305.07017).

    Every run within the text is as likely as any other. It may begin and end inside a word of several
    pieces, as in open_clip's code of it.
    """

    def scores(self, x, words, room, seed):
        place = place_among(words)
        spare = ops.maximum(place[:, -1:] + 1 - room, 0.0)
        first = ops.floor(seed.uniform((ops.shape(x)[0], 1)) * (spare + 1))
        return ops.where((place >= first) & (place < first + room), 0.0, 1.0)


def place_among(words):
    """Bool (batch, length) -> how many words come before a word: float32 (batch, length)."""
    return ops.cumsum(ops.cast(words, "float32"), axis=1) - 1


@register
class SyntaxMasker(WordMasker):
    """Keeps nouns first, then adjectives, verbs and other words: CLIPA's syntax masking (arXiv 2305.07017).

    Verbs come third as in open_clip's code of it, which runs NLTK's tagger on each word in its sentence.
    This looks each word up in lists of English words, else at its ending (`flipkit_text_maskers.words`),
    which needs no pass over the texts. Within a class chance decides. The pieces of a word stay together:
    they share a class, that of the last one's ending, and a draw; a word that does not fit loses its last
    pieces.

    It takes tokenizers that spell their ids (`flipkit.Tokenizer.spellings`): not bytes.
    """

    def prepare(self, model):
        super().prepare(model)
        self.table()

    def table(self):
        """The table of each id, `known`; zeros for a tokenizer without a vocabulary."""
        tokenizer = self._tokenizer()
        if tokenizer is not None and not tokenizer.trained:
            return np.zeros((1, 4), "int32")  # for `flipkit plan`, and while a file is read
        try:
            return known(tuple((tokenizer or flipkit.Tokenizer()).spellings()))
        except flipkit.ConfigurationError as problem:
            raise flipkit.ConfigurationError(
                "The masker 'syntax' finds nouns by their letters. Expected a model whose tokenizer spells "
                f"words, such as 'wordpiece'. Received: tokenizer={tokenizer!r} ({problem})"
            ) from problem

    def classes(self, x, words):
        """The class of each token's word, and where that word begins: int32 (batch, length) both."""
        entries = ops.take(self.table(), x, axis=0)
        alone, ending, before, after = ops.unstack(entries, 4, axis=2)
        first, last = words_of(ops.cast(before, "bool"), ops.cast(after, "bool"), words)
        ending = ops.take_along_axis(ending, last, axis=1)
        return ops.where(ops.equal(first, last), alone, ending), first

    def scores(self, x, words, room, seed):
        kinds, first = self.classes(x, words)
        draws = seed.uniform((ops.shape(x)[0], x.shape[1]))
        return ops.cast(kinds, "float32") + ops.take_along_axis(draws, first, axis=1)


@functools.lru_cache(maxsize=4)
def known(spellings):
    """Spellings, as a tokenizer returns them -> int32 (vocab, 4).

    For each id its class as a word, its class as the last piece of one, whether it continues the word of
    the id before it, whether the next id continues its own.
    """
    rows = (
        (word_class(letters.lower()), ending_class(letters.lower()), before, after)
        for letters, before, after in spellings
    )
    return np.array([*rows], "int32")


def words_of(before, after, words):
    """The first and the last place of each token's word: int32 (batch, length) both.

    Args:
        before: bool (batch, length), whether a token continues the word of the one before it.
        after: whether the token after it continues its own.
        words: whether it is part of a word at all.
    """
    # Whether a token, but the first, belongs to the word of the one before it.
    joined = (before[:, 1:] | after[:, :-1]) & words[:, 1:] & words[:, :-1]
    word = ops.cumsum(ops.cast(ops.pad(~joined, ((0, 0), (1, 0))), "int32"), axis=1)
    earlier = word[:, None, :] < word[:, :, None]  # (batch, length, length): fused into the sums
    later = word[:, None, :] > word[:, :, None]
    first = ops.sum(ops.cast(earlier, "int32"), axis=2)
    return first, words.shape[1] - 1 - ops.sum(ops.cast(later, "int32"), axis=2)


@register
class FrequencyMasker(WordMasker):
    """Keeps rare words more often: CLIPF (Liang and Larson, WACV 2026, arXiv 2412.16148).

    The paper leaves a word out with probability 1 - sqrt(threshold / f), where f is its share of all words
    (word2vec's subsampling, Mikolov et al., 2013, arXiv 1310.4546, eq. 5). Here the number kept is given,
    and each next word is drawn by the odds sqrt(threshold / f), at most 1, without replacement (Efraimidis
    and Spirakis, 2006). The authors' code keeps the highest sums of sqrt(threshold / f) and a uniform
    number, which hardly separates a word of f = 0.0001 from one of 0.1.

    The paper counts the words of the training set beforehand. This counts ids, and so the pieces of words,
    in the texts that it masks, each step's after they were masked: the first step is random, and the shares
    become those of the data. The counts are in checkpoints and `.keras` files.

    Args:
        threshold: the paper's t, the share up to which all words are as likely; 1e-6 as in its code.
    """

    def __init__(self, threshold=1e-6, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})  # bfloat16 can't count beyond 256
        if not isinstance(threshold, (int, float)) or not threshold > 0:
            raise flipkit.ConfigurationError(
                f"Expected a share above 0. Received: threshold={threshold!r}"
            )
        self.threshold = threshold
        self._vocab = None

    def prepare(self, model):
        super().prepare(model)
        self._vocab = model.text.vocab

    def build(self, input_shape):
        if self._vocab is None:
            raise flipkit.ConfigurationError(
                "The masker 'frequency' works only in a model, which has a number of ids: "
                "flipkit.FLIP(..., text_masker='frequency')"
            )
        # Float32, though they are whole: an int32 would overflow at two billion.
        self.counts = self.add_weight(
            shape=(self._vocab,), initializer="zeros", trainable=False, name="counts"
        )

    def scores(self, x, words, room, seed):
        odds = ops.take(self.odds(), x, axis=0)
        counted = ops.reshape(ops.cast(words, "float32"), (-1,))
        self.counts.assign_add(ops.segment_sum(counted, ops.reshape(x, (-1,)), self._vocab))
        return -ops.log(1.0 - seed.uniform((ops.shape(x)[0], x.shape[1]))) / odds

    def odds(self):
        """sqrt(threshold / f) of each id, at most 1: float32 (vocab,). A new id counts as seen once."""
        seen = ops.convert_to_tensor(self.counts)
        shares = ops.maximum(seen, 1.0) / ops.maximum(ops.sum(seen), 1.0)
        return ops.minimum(ops.sqrt(self.threshold / shares), 1.0)

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}
