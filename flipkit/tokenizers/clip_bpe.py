"""CLIP's byte pairs."""

import functools
import html
import os
from typing import Any

from absl import logging
from tokenizers import Regex, models, pre_tokenizers

from flipkit import registry
from flipkit.errors import ConfigurationError
from flipkit.tokenizers.subwords import Subwords

try:
    import ftfy  # mends mojibake and the like before CLIP's byte pairs are cut
except ImportError:
    ftfy = None


@registry.register
class ClipBPE(Subwords):
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
        """Bytes, the last one marked, merged pair by pair in the order of the file."""
        if word in self.ends:
            return [self._ids[word]]
        letters = "".join(_BYTES[byte] for byte in word.encode())
        return [token.id for token in self._model.tokenize(letters)]

    def train(self, texts, vocab):
        """Raises: its merges are CLIP's."""
        raise ConfigurationError(f"{type(self).__name__} isn't trained on captions: {self.advice}")

    def spellings(self):
        """A piece that ends a word has "</w>" after it; a part of a letter is spelled U+FFFD."""
        self._require_lines()
        return [self._spelling(piece) for piece in self._ids]

    def _spelling(self, piece):
        if piece in self.ends:
            return piece, False, False
        coded = bytes(_BYTE_OF[letter] for letter in piece.removesuffix("</w>"))
        return coded.decode("utf-8", "replace"), False, not piece.endswith("</w>")

    @functools.cached_property
    def _merges(self):
        # The first line holds the version.
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
    """A text as ftfy mends it, line by line on demand."""
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
    """The words that CLIP's pattern finds in a text, on demand: a text can have a million words, of which
    the ids of the first 75 are needed.
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


# GPT-2's letters for the 256 bytes: printable Latin-1 stands for itself, the rest from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + i) for i, byte in enumerate(_OTHERS)
}
_BYTE_OF = {letter: byte for byte, letter in _BYTES.items()}
_SLICE = 2**10  # characters searched together; nearly every caption has fewer
_FIXED = len("<start_of_text>")  # the longest alternative of the pattern that is no run
_CLIP_WORDS = pre_tokenizers.Split(
    Regex(
        r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    ),
    "removed",
    invert=True,
)
