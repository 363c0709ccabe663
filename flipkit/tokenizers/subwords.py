"""The base of tokenizers that cut words into pieces."""

import functools
import itertools
import pathlib
from collections.abc import Iterable

from flipkit import files
from flipkit.errors import ConfigurationError
from flipkit.tokenizers.tokenizer import Tokenizer


class Subwords(Tokenizer):
    """Cuts a text into words, and each word into ids by a model made of the lines of one file.

    A subclass sets `argument`, the constructor's argument for the file, and writes `words`, `pieces`.
    Attributes that start with an underscore are computed from the others, when first needed.
    """

    argument: str  # the asset has the same name
    advice: str  # where to get such a file: the end of an error
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
        """The lines of the file; raises if there are none."""
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
        """Read the lines from `<argument>.txt` if there is one."""
        path = pathlib.Path(folder, f"{self.argument}.txt")
        if path.exists():
            self._learn(self.read(path))
