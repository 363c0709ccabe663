"""keras-nlp's tokenizers: those of a preset, with their files inside `.keras` files."""

import functools
import json
import os
import pathlib
import string
import tempfile

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras

from flipkit_keras_nlp import presets

FOLDER = "keras_nlp_tokenizer"  # among a model's assets


@keras.saving.register_keras_serializable(package="flipkit_keras_nlp")
class KerasNLPTokenizer(flipkit.Tokenizer):
    """A preset's tokenizer, as keras-nlp's preprocessors use it.

    Texts stand between its start and its end, and are filled with its padding: [CLS], [SEP] and [PAD]
    of BERT, CLIP's start and end, SigLIP's end alone.

    Args:
        preset: a preset's folder, or a name of keras-nlp's.
        add_start, add_end: whether texts begin and end with these; None is as in the preset's model:
            both where they exist, but no start for SigLIP.
    """

    def __init__(self, preset=None, *, add_start=None, add_end=None):
        self.preset = None if preset is None else os.fspath(preset)
        self.add_start, self.add_end = add_start, add_end

    @classmethod
    def example(cls):
        """BERT's with an alphabet for words, for `flipkit.testing`."""
        letters = string.ascii_lowercase
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = [*special, *letters, *(f"##{letter}" for letter in letters)]
        made = cls()
        made.__dict__["files"] = presets.apart(
            lambda: _saved(presets.library().models.BertTokenizer(words))
        )
        return made

    @functools.cached_property
    def files(self):
        """The tokenizer's serialised form and its files, {name: bytes}; None without a preset."""
        if self.preset is None:
            return None

        def read():
            try:
                tokenizer = presets.library().models.Tokenizer.from_preset(self.preset)
            except (OSError, ValueError) as error:
                raise flipkit.ConfigurationError(
                    f"Can't read a tokenizer from the preset {self.preset}: {error}"
                ) from error
            return _saved(tokenizer)

        return presets.apart(read)

    @property
    def vocab(self):
        """Number of ids; None without a preset."""
        return None if self.files is None else self._known.vocabulary_size()

    @property
    def pad(self):
        """The id that fills a row."""
        return getattr(self._known, "pad_token_id", None) or 0

    @property
    def start(self):
        """The id that every text starts with, or None."""
        siglip = "SigLIP" in type(self._known).__name__
        wanted = not siglip if self.add_start is None else self.add_start
        return getattr(self._known, "start_token_id", None) if wanted else None

    @property
    def end(self):
        """The id that every text ends with, or None."""
        return getattr(self._known, "end_token_id", None) if self.add_end is not False else None

    def encode(self, text):
        """keras-nlp's ids of the text."""
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair has no bytes
        [ids] = self._known([text])
        return [int(i) for i in ids]

    @functools.cached_property
    def _known(self):
        """keras-nlp's own object."""
        files = self.files
        if files is None:
            raise flipkit.ConfigurationError(
                "A keras-nlp tokenizer needs a preset: set model.tokenizer.preset=PATH"
            )

        def make():
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    path = pathlib.Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                text = pathlib.Path(folder, "tokenizer.json").read_text(encoding="utf-8")
                presets.library()
                tokenizer = keras.saving.deserialize_keras_object(json.loads(text))
                tokenizer.load_assets(os.path.join(folder, "assets", "tokenizer"))
                return tokenizer

        return presets.apart(make)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def save_assets(self, folder):
        """Write its files into a folder of their own."""
        for name, content in (self.files or {}).items():
            path = pathlib.Path(folder, FOLDER, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def load_assets(self, folder):
        """Read the files of `save_assets`."""
        root = pathlib.Path(folder, FOLDER)
        files = [path for path in root.rglob("*") if path.is_file()]
        if files:
            kept = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
            self.__dict__ = self.__getstate__() | {"files": kept}


def _saved(tokenizer):
    """The files from which keras-nlp's own object is made again: {name: bytes}."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_to_preset(folder)
        files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
