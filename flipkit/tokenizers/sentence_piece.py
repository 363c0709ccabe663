"""SentencePiece models: the pieces of T5, SigLIP and Gemma, or ones learned from captions."""

import functools
import io
import os
import pathlib
import string

from flipkit import registry
from flipkit.errors import ConfigurationError, nearest
from flipkit.tokenizers.tokenizer import Tokenizer

CLEANINGS = ("none", "lower", "canonicalize")
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


@registry.register
class SentencePiece(Tokenizer):
    """The pieces of a SentencePiece model (Kudo and Richardson, arXiv 1808.06226).

    SigLIP's ids are those of `SentencePiece("spiece.model", clean="canonicalize", add_eos=True,
    pad=1)` at length 64: it fills a row with its end id, and reads the last one's feature.

    Args:
        model: path of a model that SentencePiece wrote; None to `train` one.
        clean: the change to a text before the model's own normalisation: "none", "lower" case, or
            "canonicalize": lower case without ASCII punctuation, an underscore for a space, as
            SigLIP (big_vision) does.
        add_bos: start every text with the model's <s>.
        add_eos: end every text with the model's </s>, a truncated one too.
        pad: the id that fills a row; 0 in models trained here and in T5's.
    """

    def __init__(self, model=None, *, clean="none", add_bos=False, add_eos=False, pad=0):
        self.model = None if model is None else os.fspath(model)
        self.clean, self.add_bos, self.add_eos, self.pad = clean, add_bos, add_eos, pad
        if clean not in CLEANINGS:
            raise ConfigurationError(f"Unknown {clean=}. {nearest(str(clean), CLEANINGS)}")

    @functools.cached_property
    def proto(self) -> bytes | None:
        """The model's file as bytes: read, trained or loaded from assets; None without one."""
        if self.model is None:
            return None
        try:
            return pathlib.Path(self.model).read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"Can't read model={self.model!r} ({error}): set `model` to a file that "
                "SentencePiece wrote, such as spiece.model, or leave it None to train one."
            ) from error

    @property
    def vocab(self):
        """Number of pieces, or None while untrained."""
        return None if self.proto is None else self._processor.get_piece_size()

    @property
    def start(self):
        """The id of <s> if texts start with it."""
        return self._processor.bos_id() if self.add_bos and self.trained else None

    @property
    def end(self):
        """The id of </s> if texts end with it."""
        return self._processor.eos_id() if self.add_eos and self.trained else None

    def encode(self, text):
        """SentencePiece's ids of the cleaned text."""
        self._require_model()
        return self._processor.encode(self._cleaned(text))

    def spellings(self):
        """A piece that begins a word has U+2581, a lower block, before it."""
        self._require_model()
        found = []
        for i in range(self._processor.get_piece_size()):
            piece = self._processor.id_to_piece(i)
            goes_on = piece[0] != "\u2581" and not self._processor.is_control(i)
            found.append((piece.lstrip("\u2581"), goes_on, False))
        return found

    def _require_model(self):
        if self.proto is None:
            raise ConfigurationError(
                "SentencePiece is untrained: set `model` to a file that SentencePiece wrote, or "
                "leave it None and call `train(captions, vocab=...)`."
            )

    def _cleaned(self, text):
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair has no bytes
        if self.clean == "canonicalize":
            return " ".join(text.translate(_NO_PUNCTUATION).lower().split())
        return text.lower() if self.clean == "lower" else text

    @functools.cached_property
    def _processor(self):
        processor = _package().SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(self.proto or b"")
        except RuntimeError as error:
            raise ConfigurationError(
                f"Not a model that SentencePiece wrote: model={self.model!r} ({error})"
            ) from error
        wanted = {"<s>": (self.add_bos, processor.bos_id())}
        wanted["</s>"] = (self.add_eos, processor.eos_id())
        for piece, (used, i) in wanted.items():
            if used and i < 0:
                raise ConfigurationError(f"The model has no {piece}. Received: {self!r}")
        if not 0 <= self.pad < processor.get_piece_size():
            raise ConfigurationError(
                f"Expected `pad` to be one of {processor.get_piece_size():,} ids. Received: {self!r}"
            )
        return processor

    def train(self, texts, vocab):
        """Learn at most `vocab` pieces (a unigram model) from captions: the same ones in any order. Id 0 is
        padding, 1 the end, 2 an unknown piece, as in T5's models.
        """
        if self.model is not None:
            raise ConfigurationError(f"{self!r} has a model: train SentencePiece() instead.")
        written = io.BytesIO()
        try:
            _package().SentencePieceTrainer.train(
                sentence_iterator=iter(sorted(map(self._cleaned, texts))),
                model_writer=written,
                vocab_size=vocab,
                hard_vocab_limit=False,  # few captions have fewer pieces
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=3 if self.add_bos else -1,
                num_threads=1,  # sums of floats, and so the pieces, depend on their number
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(
                f"SentencePiece can't learn {vocab:,} pieces from these captions: {error}"
            ) from error
        self.__dict__ = self.__getstate__() | {"proto": written.getvalue()}

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def save_assets(self, folder):
        """Write the model to `sentencepiece.model`; nothing while untrained."""
        if self.proto is not None:
            pathlib.Path(folder, "sentencepiece.model").write_bytes(self.proto)

    def load_assets(self, folder):
        """Read the model from `sentencepiece.model` if there is one."""
        path = pathlib.Path(folder, "sentencepiece.model")
        if path.exists():
            self.__dict__ = self.__getstate__() | {"proto": path.read_bytes()}


def _package():
    """The library, imported when a model is first used."""
    try:
        import sentencepiece
    except ImportError as error:
        raise ConfigurationError(
            "A SentencePiece tokenizer needs a package: pip install 'flipkit[sentencepiece]'"
        ) from error
    return sentencepiece
