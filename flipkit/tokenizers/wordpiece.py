"""BERT's WordPiece."""

import collections
import functools
import os
import string
import unicodedata

from tokenizers import Tokenizer as Pipeline
from tokenizers import models, pre_tokenizers, trainers

from flipkit import registry
from flipkit.errors import ConfigurationError
from flipkit.tokenizers.subwords import Subwords


@registry.register
class WordPiece(Subwords):
    """BERT's word pieces, cleaned and cut as tensorflow_text does it for the official FLIP.

    By default without [CLS] and [SEP]: FLIP pools the feature of the first word piece.

    Args:
        vocabulary: path of a file with one piece per line, [PAD] first; None to `train` one.
        lowercase: fold case and compatibility forms and drop accents, as "uncased" BERT.
        add_cls: start every text with [CLS].
        add_sep: end every text with [SEP].
    """

    argument = "vocabulary"
    advice = (
        "set `vocabulary` to a file with one piece per line, such as BERT's vocab.txt, "
        "or leave it None and call `train(captions, vocab=...)`."
    )
    longest = 100  # bytes; a longer word is [UNK]

    def __init__(self, vocabulary=None, *, lowercase=True, add_cls=False, add_sep=False):
        self.vocabulary = None if vocabulary is None else os.fspath(vocabulary)
        self.lowercase = lowercase
        self.add_cls = add_cls
        self.add_sep = add_sep

    @property
    def vocab(self):
        """Number of pieces, or None while untrained."""
        return None if self.lines is None else len(self.lines)

    @property
    def start(self):
        """The id of [CLS] if texts start with it."""
        return self._ids["[CLS]"] if self.add_cls and self.trained else None

    @property
    def end(self):
        """The id of [SEP] if texts end with it."""
        return self._ids["[SEP]"] if self.add_sep and self.trained else None

    def words(self, text):
        """Words between ASCII spaces; each punctuation mark and CJK ideograph is one of its own."""
        text = _fold(text) if self.lowercase else text
        return filter(None, text.translate(_ISOLATE).split(" "))

    def pieces(self, word):
        """The longest known beginning, then the longest "##" piece, and so on; else [UNK]."""
        if len(word.encode()) > self.longest:
            return [self._ids["[UNK]"]]
        return [token.id for token in self._model.tokenize(word)]

    @functools.cached_property
    def _ids(self):
        ids = {piece: i for i, piece in enumerate(self.lines or [])}
        needed = ["[UNK]"] + ["[CLS]"] * self.add_cls + ["[SEP]"] * self.add_sep
        if ids.get("[PAD]") != self.pad or not ids.keys() >= set(needed):
            raise ConfigurationError(
                f"Expected a vocabulary with [PAD] on its first line, and {', '.join(needed)}. "
                f"Received: vocabulary={self.vocabulary!r} whose first line is {self.lines[0]!r}"
            )
        return ids

    @functools.cached_property
    def _model(self):
        return models.WordPiece(self._ids, max_input_chars_per_word=self.longest)

    def spellings(self):
        """A piece that continues a word has "##" before it."""
        lines = self._require_lines()
        return [(piece.removeprefix("##"), piece.startswith("##"), False) for piece in lines]

    def train(self, texts, vocab):
        """Learn at most `vocab` pieces from captions: the same ones in any order.

        The 1,000 most frequent characters have pieces, as in Hugging Face's BERT trainer; fewer
        if `vocab` is too small for both forms of each. A word with another one is [UNK].
        """
        if self.vocabulary is not None:
            raise ConfigurationError(f"{self!r} has a vocabulary: train WordPiece() instead.")
        counts = collections.Counter(word for text in texts for word in self.words(text))
        letters = collections.Counter()
        for word, count in counts.items():
            letters.update(dict.fromkeys(word, count))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        known = sorted(letters, key=lambda letter: (-letters[letter], letter))
        known = frozenset(known[: min(1000, (vocab - len(special)) // 2)])
        words = [w for w in sorted(counts) if known >= set(w) and len(w.encode()) <= self.longest]

        # The trainer numbers letters in the order of a randomly seeded hash map, and breaks ties
        # by number; but special tokens it numbers as they come. (tokenizers 0.23)
        first = sorted(set("".join(words)))
        later = sorted({f"##{letter}" for word in words for letter in word[1:]})
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab,
            min_frequency=2,
            special_tokens=[*special, *first, *later],
            show_progress=False,
        )
        pipeline = Pipeline(models.WordPiece({}))
        pipeline.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
        pipeline.train_from_iterator((" ".join([word] * counts[word]) for word in words), trainer)
        ids = pipeline.get_vocab()
        self._learn(sorted(ids, key=lambda piece: ids[piece]))


def _fold(text):
    """NFKC case folding without default-ignorable characters, and then without accents."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFD", text.translate(_IGNORABLE))
    for _ in range(2):  # compatibility forms can hide capitals: ℋ is H, ℠ is SM
        text = unicodedata.normalize("NFKC", text.casefold())
    text = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in text if unicodedata.category(letter) != "Mn")


class _Isolate(dict):
    """The replacement of a character in `str.translate`: spaces for control and format characters and
    round punctuation and ideographs; computed when a character first comes.
    """

    def __missing__(self, code):
        letter = chr(code)
        category = unicodedata.category(letter)
        if category in ("Cc", "Cf"):
            self[code] = " "
        elif category == "Cs":
            self[code] = "\ufffd"  # half a surrogate pair, which UTF-8 has no bytes for
        elif category[0] == "P" or letter in string.punctuation or _is_ideograph(code):
            self[code] = f" {letter} "
        else:
            self[code] = letter
        return self[code]


def _is_ideograph(code):
    """Whether BERT takes a code point for a word of its own."""
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


_ISOLATE = _Isolate()

# Default_Ignorable_Code_Point of Unicode 15, which unicodedata lacks; first and last
_IGNORABLE = dict.fromkeys(
    code
    for first, last in [
        (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5),
        (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
        (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    ]
    for code in range(first, last + 1)
)  # fmt: skip
