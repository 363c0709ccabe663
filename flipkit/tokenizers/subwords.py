"""Words cut into pieces from one file: BERT's word pieces as FLIP takes them, CLIP's byte pairs."""

import collections
import functools
import html
import itertools
import os
import pathlib
import string
import unicodedata
from collections.abc import Iterable
from typing import Any

from absl import logging
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Pipeline

from flipkit import files, registry
from flipkit.errors import ConfigurationError
from flipkit.tokenizers.tokenizer import Tokenizer

try:
    import ftfy  # mends mojibake and the like before CLIP's byte pairs are cut
except ImportError:
    ftfy = None


class _Subwords(Tokenizer):
    """Cuts a text into words, and each word into ids by a model made of the lines of one file.

    A subclass names the constructor's argument that names the file, and writes `words`, `pieces`.
    Attributes that start with an underscore are made of the others, when first needed.
    """

    argument: str  # the asset has the same name
    advice: str  # how to come by such a file: the end of an error
    remembered = 2**16  # words; captions repeat few words often

    @functools.cached_property
    def lines(self) -> list[str] | None:
        """The file's lines: read, trained or loaded from assets; None while there are none."""
        path = getattr(self, self.argument)
        return None if path is None else self.read(pathlib.Path(path))

    def read(self, path: pathlib.Path) -> list[str]:
        """The lines of a text file, which may be gzipped."""
        text = files.read(path, self.argument, self.advice)
        return text.rstrip("\n").split("\n")  # U+2028 may be part of a line

    def words(self, text: str) -> Iterable[str]:
        """The words of a text, cleaned; no piece crosses a border between words."""
        raise NotImplementedError

    def pieces(self, word: str) -> Iterable[int]:
        """The ids of one word."""
        raise NotImplementedError

    def encode(self, text):
        """The ids of its words, one after the other."""
        self._require_lines()
        return itertools.chain.from_iterable(map(self._remember, self.words(text)))

    def _require_lines(self):
        """The lines of its file, of a tokenizer that has them."""
        if self.lines is None:
            raise ConfigurationError(f"{type(self).__name__} is untrained: {self.advice}")
        return self.lines

    @functools.cached_property
    def _remember(self):
        return functools.lru_cache(self.remembered)(lambda word: tuple(self.pieces(word)))

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def _learn(self, lines):
        self.__dict__ = self.__getstate__() | {"lines": lines}

    def save_assets(self, folder):
        """Write the lines to `<argument>.txt`; nothing while untrained."""
        if self.lines is not None:
            path = pathlib.Path(folder, f"{self.argument}.txt")
            path.write_text("\n".join([*self.lines, ""]), encoding="utf-8", newline="\n")

    def load_assets(self, folder):
        """Take the lines from `<argument>.txt` where there is one."""
        path = pathlib.Path(folder, f"{self.argument}.txt")
        if path.exists():
            self._learn(self.read(path))


@registry.register
class WordPiece(_Subwords):
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
        """A piece that goes on with a word has "##" before it."""
        lines = self._require_lines()
        return [(piece.removeprefix("##"), piece.startswith("##"), False) for piece in lines]

    def train(self, texts, vocab):
        """Learn at most `vocab` pieces from captions: the same ones whatever their order.

        The 1,000 most frequent characters have pieces, as in Hugging Face's BERT trainer; fewer
        if `vocab` has no room for both forms of each. A word with another one is [UNK].
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


@registry.register
class ClipBPE(_Subwords):
    """The byte pairs of OpenAI's CLIP, between a start and an end.

    With ftfy the ids are those of CLIP and open_clip for every text; without it they can differ
    where a text has curly quotes, ligatures, full-width letters or mojibake.

    Args:
        merges: path of `bpe_simple_vocab_16e6.txt.gz`, or of the same unzipped.
    """

    argument = "merges"
    advice = (
        "set `merges` to the file bpe_simple_vocab_16e6.txt.gz, published in "
        "github.com/openai/CLIP and github.com/mlfoundations/open_clip."
    )
    ends = ("<start_of_text>", "<end_of_text>")  # words to open_clip; text to OpenAI's own code

    def __init__(self, merges=None):
        self.merges = None if merges is None else os.fspath(merges)

    @classmethod
    def example(cls):
        """One with two merges, for `flipkit.testing`."""
        made = cls()
        made._learn(["#version: 0.2", "r e", "re d</w>"])
        return made

    @property
    def vocab(self):
        """Number of ids: 49,408 with all of CLIP's merges; None without any."""
        return None if self.lines is None else len(self._ids)

    @property
    def start(self):
        """The last id but one: 49,406 in CLIP."""
        return self._ids[self.ends[0]] if self.trained else None

    @property
    def end(self):
        """The last id: 49,407 in CLIP."""
        return self._ids[self.ends[1]] if self.trained else None

    def read(self, path):
        """The version line and the 48,894 merges that CLIP uses of 262,144."""
        return super().read(path)[: 1 + 49_408 - 512 - 2]  # 512 bytes and 2 ends are no merges

    def words(self, text):
        """In lower case: letters, single digits, runs of other marks, English contractions."""
        if ftfy is None:
            advice = "CLIP's ids can differ for unusual text: pip install ftfy"
            logging.log_first_n(logging.WARNING, advice, 1)
        for part in _mended(text):
            part = html.unescape(html.unescape(part.encode("utf-8", "replace").decode()))
            yield from _cut(" ".join(part.split()).lower())

    def pieces(self, word):
        """Bytes, the last one marked as such, merged pair by pair in the order of the file."""
        if word in self.ends:
            return [self._ids[word]]
        letters = "".join(_BYTES[byte] for byte in word.encode())
        return [token.id for token in self._model.tokenize(letters)]

    def train(self, texts, vocab):
        """Refused: its merges are CLIP's."""
        raise ConfigurationError(f"{type(self).__name__} isn't trained on captions: {self.advice}")

    def spellings(self):
        """A piece that ends a word has "</w>" after it; what is part of a letter is spelled U+FFFD."""
        self._require_lines()
        return [self._spelling(piece) for piece in self._ids]

    def _spelling(self, piece):
        if piece in self.ends:
            return piece, False, False
        coded = bytes(_BYTE_OF[letter] for letter in piece.removesuffix("</w>"))
        return coded.decode("utf-8", "replace"), False, not piece.endswith("</w>")

    @functools.cached_property
    def _merges(self):
        # The first line tells the version.
        pairs: list[Any] = [tuple(line.split()) for line in self.lines[1:]]
        known = {*map("".join, pairs), *_BYTES.values(), *(f"{b}</w>" for b in _BYTES.values())}
        for number, pair in enumerate(pairs, 2):
            if len(pair) != 2 or not known >= {*pair}:
                raise ConfigurationError(
                    "Expected merges: a line with their version, then two pieces in every line, which "
                    f"are bytes or what another line has merged. Received: line {number} of "
                    f"merges={self.merges!r}, {self.lines[number - 1][:40]!r}: {self.advice}"
                )
        return pairs

    @functools.cached_property
    def _ids(self):
        letters = _BYTES.values()
        merged = ("".join(pair) for pair in self._merges)
        pieces = [*letters, *(f"{letter}</w>" for letter in letters), *merged, *self.ends]
        return {piece: i for i, piece in enumerate(pieces)}

    @functools.cached_property
    def _model(self):
        return models.BPE(self._ids, self._merges, end_of_word_suffix="</w>")


def _mended(text):
    """What ftfy makes of a text, a line after the other: as it does it by itself, but on demand."""
    start, entities = 0, "auto"
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        line, start = text[start:end], end
        if ftfy is not None:
            mended = ftfy.fix_text(line, unescape_html=entities)
            # With a < in it, ftfy takes this line, and all that follow, for HTML.
            entities, line = False if "<" in line else entities, mended
        yield line


def _cut(text):
    """The words that CLIP's pattern finds in a text, one after the other: on demand, since a text can
    have a million, of which ids are needed for the first 75.
    """
    start, size = 0, _SLICE
    while start < len(text):
        part, rest = text[start : start + size], len(text) - start
        found = _CLIP_WORDS.pre_tokenize_str(part)
        # A word at the end of a part may go on, and one shortly before it be another word then.
        sure = [
            (word, end)
            for word, (begin, end) in found
            if rest <= size or (end < len(part) and begin + _FIXED <= len(part))
        ]
        yield from (word for word, _ in sure)
        if rest <= size:
            return
        start += sure[-1][1] if sure else 0
        size = _SLICE if sure else 2 * size


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
    """What `str.translate` puts for a character: spaces for control and format characters and
    round punctuation and ideographs; found when a character first comes.
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

# Default_Ignorable_Code_Point of Unicode 15, which unicodedata doesn't tell; first and last
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

# GPT-2's letters for the 256 bytes: printable Latin-1 stands for itself, the rest from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + i) for i, byte in enumerate(_OTHERS)
}
_BYTE_OF = {letter: byte for byte, letter in _BYTES.items()}

_SLICE = 2**10  # characters looked at together; nearly every caption has fewer
_FIXED = len("<start_of_text>")  # the longest alternative of the pattern that is no run

_CLIP_WORDS = pre_tokenizers.Split(
    Regex(
        r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    ),
    "removed",
    invert=True,
)
