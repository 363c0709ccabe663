"""The base of every tokenizer, and the simplest one: plain bytes."""

import itertools
from collections.abc import Iterable

import numpy as np

from flipkit import registry
from flipkit.errors import ConfigurationError


class Tokenizer(registry.Configurable):
    """Texts to ids: `(texts,)` strings -> `(texts, length)` int32, right-padded with `pad`.

    A subclass sets `vocab` and writes `encode`; one with files also writes `save_assets` and
    `load_assets`; one that learns from captions also writes `train`. It must pickle: every worker
    of a feed holds a copy.

    Attributes:
        vocab: number of ids, or None while untrained.
        pad: the id that fills a row: 0.
        start: the id every text starts with, or None.
        end: the id every text ends with, where `pool="eos"` reads its feature, or None.
    """

    vocab: int | None = None
    pad = 0
    start: int | None = None
    end: int | None = None

    def __init__(self):
        """A tokenizer without settings, unless the subclass has its own."""

    @property
    def trained(self) -> bool:
        """Whether texts can be tokenized."""
        return self.vocab is not None

    def __call__(self, texts: list[str], length: int) -> np.ndarray:
        """The ids of `texts`; a text that is too long loses its end, but keeps `start` and `end`.

        Raises:
            ConfigurationError: the tokenizer is untrained, its file can't be read, or `length` is too
                small for `start` and `end`.
        """
        if isinstance(texts, str):
            raise ConfigurationError(f"Expected a list of texts. Received one text: {texts!r}")
        before = [] if self.start is None else [self.start]
        after = [] if self.end is None else [self.end]
        least = max(1, len(before) + len(after))
        if length < least:
            reason = "" if least == 1 else ": every text begins with one id and ends with another"
            raise ConfigurationError(
                f"Expected a length of at least {least}{reason}. Received: length={length}"
            )
        most = length - len(before) - len(after)
        rows = np.full((len(texts), length), self.pad, "int32")
        for row, text in zip(rows, texts, strict=True):
            ids = [*before, *itertools.islice(self.encode(text), most), *after]
            row[: len(ids)] = ids
        return rows

    def encode(self, text: str) -> Iterable[int]:
        """The ids of one text without `start` and `end`; iterated only as far as they are used."""
        raise NotImplementedError

    def spellings(self) -> list[tuple[str, bool, bool]]:
        """The spelling of each id, in the order of ids: its letters, whether it continues the word of the
        id before it, and whether the id after it continues its own.

        Raises:
            ConfigurationError: the ids are no pieces of words, or there are none yet.
        """
        raise ConfigurationError(f"{type(self).__name__} doesn't cut texts into pieces of words.")

    def train(self, texts: Iterable[str], vocab: int):
        """Learn at most `vocab` ids from captions: the same ones in any order."""
        raise ConfigurationError(f"{type(self).__name__} has nothing to train.")

    def save_assets(self, folder):
        """Write into `folder` the files that `load_assets` reads: none for a tokenizer without files."""

    def load_assets(self, folder):
        """Read the files of `save_assets`; they replace a file named in the config."""


@registry.register
class Bytes(Tokenizer):
    """The UTF-8 bytes of a text: every language, nothing to train, no file.

    >>> Bytes()(["é"], 6)
    array([[  1, 198, 172,   2,   0,   0]], dtype=int32)
    """

    vocab = 259  # pad, start, end, 256 bytes
    start, end = 1, 2

    def encode(self, text):
        """Byte b is id b + 3."""
        return (byte + 3 for byte in text.encode("utf-8", "replace"))
