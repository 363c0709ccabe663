import collections
import functools
import pathlib
import types

import flipkit_text_maskers as plugin
import numpy as np
import pytest
from flipkit_text_maskers import words as lists
from flipkit_text_maskers.maskers import (
    FrequencyMasker,
    SyntaxMasker,
    TruncateMasker,
    WordBlockMasker,
)

import flipkit
from flipkit import testing

MASKERS = [FrequencyMasker, SyntaxMasker, TruncateMasker, WordBlockMasker]


def checks():
    for masker in MASKERS:
        for check in testing.check_masker(masker):
            marked = pytest.mark.slow if check.slow else ()
            yield pytest.param(check, id=f"{masker.__name__}: {check}", marks=marked)


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_a_masker_must(check):
    check()


class Spelled(flipkit.Tokenizer):
    """Ids of these pieces, after padding; "<s>" and "</s>" are its start and its end."""

    def __init__(self, pieces, before=(), after=()):
        self.pieces, self.before, self.after = ["<pad>", *pieces], before, after
        self.vocab = len(self.pieces)
        self.start, self.end = map({p: i for i, p in enumerate(self.pieces)}.get, ("<s>", "</s>"))

    def spellings(self):
        return [(piece, piece in self.before, piece in self.after) for piece in self.pieces]

    def rows(self, text, length, batch):
        """The pieces of `text`, between spaces, then padding: int32 (batch, length)."""
        ids = [self.pieces.index(piece) for piece in text.split()]
        return np.tile(np.array([*ids, *[0] * (length - len(ids))], "int32"), (batch, 1))


def model_of(masker, tokenizer):
    """The smallest FLIP for this masker and this tokenizer."""
    return flipkit.FLIP(
        flipkit.ViT(32, 8, dim=16, depth=1, heads=2),
        flipkit.TextTransformer(tokenizer.vocab or 100, 8, dim=16, depth=1, heads=2),
        text_masker=masker,
        text_mask_ratio=0.5,
        tokenizer=tokenizer,
        dim=8,
    )


def prepared(masker, tokenizer=None):
    """`masker` as a model with this tokenizer prepares it, without the model."""
    text = types.SimpleNamespace(vocab=tokenizer.vocab if tokenizer else 20)
    masker.prepare(types.SimpleNamespace(tokenizer=tokenizer, text=text))
    return masker


def kept(masker, x, keep, step=0):
    """Bool (batch, length): what is kept."""
    seed = flipkit.Seed(0, step).named("text_masker")
    ids = np.asarray(masker(x, keep=keep, grid=(1, x.shape[1]), seed=seed))
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, ids, True, axis=1)
    return mask


# All of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MASKERS)
def test_no_word_is_dropped_while_padding_is_kept(make):
    tokenizer = Spelled(["cat", "red", "eats", "the", "##s"], before=["##s"])
    masker = prepared(make(), tokenizer)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 64)
    x = np.where(np.arange(8) < lengths[:, None], rng.integers(1, 6, (64, 8)), 0).astype("int32")
    for keep in range(1, 9):
        mask = kept(masker, x, keep, step=keep)
        np.testing.assert_array_equal((mask & (x != 0)).sum(axis=1), np.minimum(lengths, keep))


@pytest.mark.parametrize("make", MASKERS)
def test_start_and_end_are_kept_before_any_word(make):
    """Also where what the end stands for fills the row, as in SigLIP's tokenizer."""
    tokenizer = Spelled(["<s>", "</s>", "cat", "red", "the"])
    masker = prepared(make(), tokenizer)
    x = tokenizer.rows("<s> the red cat the cat </s>", 8, 32)
    for keep in range(3, 8):
        mask = kept(masker, x, keep, step=keep)
        assert mask[:, [0, 6]].all()
        assert not mask[:, 7].any()
    assert kept(masker, x, 1)[:, 6].all()  # where CLIP's towers pool
    x[:, 7] = tokenizer.end
    assert not kept(masker, x, 7)[:, 7].any()


@pytest.mark.parametrize("make", MASKERS)
def test_a_tower_that_pools_at_the_end_pools_there_when_masked(make):
    tokenizer = Spelled(
        ["<s>", "cat", "red", "the", "</s>"]
    )  # the end is the largest id, as in CLIP
    x = tokenizer.rows("<s> the red cat </s>", 8, 16)
    masker = prepared(make(), tokenizer)
    ids = np.asarray(masker(x, keep=3, grid=(1, 8), seed=flipkit.Seed(0)))
    found = np.take_along_axis(x, ids, axis=1)
    assert (found[np.arange(16), found.argmax(axis=1)] == tokenizer.end).all()


@pytest.mark.parametrize("make", MASKERS)
def test_pictures_are_refused(make):
    masker = prepared(make(), Spelled(["cat"]))
    with pytest.raises(flipkit.ConfigurationError, match=r"set it as text_masker.*\(2, 16, 3\)"):
        masker(np.zeros((2, 16, 3), "uint8"), keep=2, grid=(4, 4), seed=flipkit.Seed(0))


@pytest.mark.parametrize("make", [FrequencyMasker, TruncateMasker, WordBlockMasker])
def test_ids_without_a_tokenizer_and_bytes_are_masked_too(make):
    x = np.where(np.arange(8) < 6, 7, 0)[None].astype("int32")
    assert kept(prepared(make()), x, 4)[0, :6].sum() == 4
    text = flipkit.Bytes()(["red"], 8)
    mask = kept(prepared(make(), flipkit.Bytes()), text, 4)
    assert mask[0, [0, 4]].all()
    assert not mask[0, 5:].any()


# Places -----------------------------------------------------------------------------------------


def test_truncation_is_what_a_shorter_tokenizer_makes():
    tokenizer = flipkit.Bytes()
    masker = prepared(TruncateMasker(), tokenizer)
    texts = ["", "a cat", "a red cat on a mat"]
    x = tokenizer(texts, 16)
    for keep in (2, 5, 9):
        found = x[kept(masker, x, keep)].reshape(3, keep)
        np.testing.assert_array_equal(found, tokenizer(texts, keep))


def test_a_block_is_a_run_of_words_and_lies_anywhere_in_the_text():
    masker = prepared(WordBlockMasker())
    x = np.where(np.arange(10) < 7, 5, 0)[None].repeat(3000, axis=0).astype("int32")
    mask = kept(masker, x, 3)
    first = mask.argmax(axis=1)
    np.testing.assert_array_equal(mask, (np.arange(10) - first[:, None]) // 3 == 0)
    shares = np.bincount(first, minlength=5) / 3000
    np.testing.assert_allclose(shares, 1 / 5, atol=0.03)


# Syntax -----------------------------------------------------------------------------------------


def test_classes_are_kept_in_their_order_and_by_chance_within_them():
    tokenizer = Spelled(["cat", "dog", "red", "big", "eats", "the", "of"])
    masker = prepared(SyntaxMasker(), tokenizer)
    x = tokenizer.rows("of the big red dog eats cat", 8, 4000)
    nouns, adjectives, verb, others = [4, 6], [2, 3], [5], [0, 1]
    for keep, sure, even, never in [
        (1, [], nouns, adjectives + verb + others),
        (2, nouns, [], adjectives + verb + others),
        (3, nouns, adjectives, verb + others),
        (4, nouns + adjectives, [], verb + others),
        (5, nouns + adjectives + verb, [], others),
        (6, nouns + adjectives + verb, others, []),
    ]:
        mask = kept(masker, x, keep)
        assert mask[:, sure].all()
        assert not mask[:, never].any()
        np.testing.assert_allclose(mask[:, even].mean(axis=0), [1 / 2] * len(even), atol=0.03)


@pytest.mark.parametrize("joins", [{"before": ["##flower"]}, {"after": ["sun"]}])
def test_pieces_of_a_word_are_kept_together(joins):
    """With "##" before what goes on, as in WordPiece, and with a mark after what ends, as in CLIP's."""
    tokenizer = Spelled(["cat", "sun", "##flower", "the"], **joins)
    masker = prepared(SyntaxMasker(), tokenizer)
    x = tokenizer.rows("the sun ##flower cat the sun ##flower", 8, 500)
    mask = kept(masker, x, 3)
    for pair in ([1, 2], [5, 6]):
        assert (mask[:, pair[0]] == mask[:, pair[1]])[mask[:, 3]].all()
    assert not mask[:, [0, 4, 7]].any()
    # A word that there is no room for loses its last pieces.
    assert (mask[:, 1] >= mask[:, 2]).all()
    assert (mask[:, 5] >= mask[:, 6]).all()


def test_the_ending_tells_of_a_word_in_pieces():
    tokenizer = Spelled(["mountain", "red", "##ous", "##ly"], before=["##ous", "##ly"])
    masker = prepared(SyntaxMasker(), tokenizer)
    x = tokenizer.rows("mountain mountain ##ous red ##ly mountain ##ous ##ly", 8, 1)
    told, first = (np.asarray(array)[0].tolist() for array in masker.classes(x, x != 0))
    noun, adjective, other = lists.NOUN, lists.ADJECTIVE, lists.OTHER
    assert told == [noun, adjective, adjective, *[other] * 5]
    assert first == [0, 1, 1, 3, 3, 5, 5, 5]


@pytest.mark.parametrize("tokenizer", [flipkit.Bytes(), None])
def test_syntax_needs_a_tokenizer_that_knows_words(tokenizer):
    with pytest.raises(flipkit.ConfigurationError, match=r"'syntax' finds nouns.*'wordpiece'"):
        prepared(SyntaxMasker(), tokenizer)
    with pytest.raises(flipkit.ConfigurationError, match="'syntax' finds nouns"):
        kept(SyntaxMasker(), np.ones((1, 8), "int32"), 4)


def test_a_tokenizer_may_learn_its_words_after_the_model_is_built():
    tokenizer = flipkit.WordPiece()
    masker = prepared(SyntaxMasker(), tokenizer)
    assert kept(masker, np.ones((1, 8), "int32"), 1).sum() == 1  # in flipkit.plan
    tokenizer.train(["the red cat"] * 9, 100)
    assert kept(masker, tokenizer(["the red cat"], 8), 1)[0].tolist().index(True) == 2


Sample = collections.namedtuple("Sample", "sample place word told caption")


@functools.cache
def samples(which):
    """Words of captions, tagged by hand."""
    lines = (pathlib.Path(__file__).parent / "fsa_words.tsv").read_text("utf-8").splitlines()
    rows = [Sample(*line.split("\t")) for line in lines if line[0] != "#"][1:]
    return [row for row in rows if row.sample == which]


def name_of(told):
    """What CLIPA has three classes for, the file has too."""
    return {lists.NOUN: "noun", lists.ADJECTIVE: "adjective"}.get(told, "other")


def test_nine_of_ten_words_of_captions_have_the_class_that_people_give_them():
    rows = samples("test")
    right = [name_of(lists.word_class(row.word)) == row.told for row in rows]
    assert len(rows) == 200
    assert np.mean(right) >= 0.9  # 0.925


def test_so_have_they_when_cut_into_pieces():
    """By a tokenizer that has learned from other captions, which cuts a third of the words."""
    tokenizer = flipkit.WordPiece()
    tokenizer.train([row.caption for row in samples("development")], 2000)
    rows = samples("test")
    x = tokenizer([row.caption for row in rows], 192)
    found, _ = prepared(SyntaxMasker(), tokenizer).classes(x, x != 0)
    right, cut = [], []
    for row, told in zip(rows, np.asarray(found), strict=True):
        words = [*tokenizer.words(row.caption)]
        assert words[int(row.place)] == row.word
        begin = sum(len([*tokenizer.pieces(word)]) for word in words[: int(row.place)])
        pieces = len([*tokenizer.pieces(row.word)])
        (of_word,) = {*told[begin : begin + pieces].tolist()}
        right.append(name_of(of_word) == row.told)
        cut.append(pieces > 1)
    assert np.mean(cut) > 0.3
    assert np.mean(right) >= 0.9  # 0.91


# Frequency --------------------------------------------------------------------------------------


def counted(threshold, counts):
    """A masker that has seen each id so many times, 0 for padding."""
    masker = prepared(FrequencyMasker(threshold))
    masker.build((None, 8))
    masker.counts.assign(np.pad(np.array(counts, "float32"), (0, 20 - len(counts))))
    return masker


def test_words_are_kept_by_the_odds_of_the_published_rule():
    counts = np.array([0, 50_000, 5_000, 500, 50, 1])
    share = counts[1:] / counts.sum()
    x = np.tile(np.array([[1, 2, 3, 4, 5]], "int32"), (20_000, 1))
    for threshold in (1e-3, 1e-6):
        masker = counted(threshold, counts)
        odds = np.minimum(1, np.sqrt(threshold / share))
        got = kept(masker, x, 1).mean(axis=0)
        np.testing.assert_allclose(got, odds / odds.sum(), atol=0.02)


def test_two_words_are_drawn_without_replacement_by_their_odds():
    counts, threshold = np.array([0, 9_000, 900, 90, 10]), 1e-3
    odds = np.minimum(1, np.sqrt(threshold * counts.sum() / counts[1:]))
    p = odds / odds.sum()
    # The chance to be drawn first, or after another one.
    wanted = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    x = np.tile(np.array([[1, 2, 3, 4]], "int32"), (20_000, 1))
    got = kept(counted(threshold, counts), x, 2).mean(axis=0)
    np.testing.assert_allclose(got, wanted, atol=0.02)


def test_what_is_masked_is_counted_for_later_steps():
    tokenizer = Spelled(["<s>", "</s>", "cat", "red"])
    masker = prepared(FrequencyMasker(), tokenizer)
    x = tokenizer.rows("<s> red cat red </s>", 8, 10)
    first = kept(masker, x, 3, step=0)
    np.testing.assert_array_equal(masker.counts, [0, 0, 0, 10, 20])
    # Nothing is known at the first step: every word is as likely.
    many = tokenizer.rows("<s> red cat red </s>", 8, 4000)
    fresh = prepared(FrequencyMasker(), tokenizer)
    np.testing.assert_allclose(kept(fresh, many, 3)[:, 1:4].mean(axis=0), 1 / 3, atol=0.03)
    assert first.shape == (10, 8)


def test_counts_are_kept_in_a_file(tmp_path):
    tokenizer = flipkit.WordPiece()
    texts = ["the red cat", "", "a red dog on the red mat"]
    tokenizer.train(texts, 100)
    model = model_of(FrequencyMasker(1e-4), tokenizer)
    model.build()
    x = tokenizer(texts, 8)
    kept(model.text_masker, x, 4)
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras").text_masker
    assert again.threshold == 1e-4
    np.testing.assert_array_equal(again.counts, model.text_masker.counts)
    np.testing.assert_array_equal(kept(again, x, 4, 1), kept(model.text_masker, x, 4, 1))


def test_a_threshold_of_0_is_refused():
    with pytest.raises(flipkit.ConfigurationError, match="Received: threshold=0"):
        FrequencyMasker(0)


def test_frequency_works_only_in_a_model():
    with pytest.raises(flipkit.ConfigurationError, match="works only in a model"):
        kept(FrequencyMasker(), np.ones((1, 8), "int32"), 4)


def test_the_names_are_offered():
    assert plugin.flipkit_maskers().keys() == {"frequency", "syntax", "truncate", "word_block"}
