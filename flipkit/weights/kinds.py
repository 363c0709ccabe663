"""A MODEL of a command line: its kinds, the errors for a path that is none, and its tokenizer."""

import pathlib
from collections.abc import Callable

from flipkit import tokenizers
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.tokenizers import ClipBPE, SentencePiece, WordPiece
from flipkit.weights import tensors, tokenizer_files

KINDS = (
    "a run's folder, a .keras file, a folder of open_clip, Hugging Face, KerasHub or save_to_preset, "
    "big_vision's .npz, or a checkpoint of the official FLIP"
)
_HUBS = ("hf-hub:", "hf://", "http://", "https://", "local-dir:")
_SHOWN = 8  # models of a folder that an error lists


def missing(path: pathlib.Path, given: str) -> UnknownName:
    """The error for a path where nothing is: the nearest name beside it, or how to fetch the model."""
    text = f"No such file or folder: {given}."
    if given.startswith("local-dir:"):
        return UnknownName(f"{text} Give the folder alone: {given.removeprefix('local-dir:')}")
    if given.startswith(_HUBS) or (len(path.parts) == 2 and not path.parent.is_dir()):
        name = given.partition(":")[2].lstrip("/") if given.startswith(_HUBS) else given
        return UnknownName(
            f"{text} flipkit downloads nothing. If that is a model of the Hugging Face Hub, fetch it "
            f"first, hf download {name} --local-dir FOLDER, and give FOLDER. A model is {KINDS}."
        )
    siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    return UnknownName(f"{text} {nearest(path.name, siblings)}")


def unknown(
    path: pathlib.Path, formats, recognised: Callable[[pathlib.Path], bool]
) -> ConfigurationError:
    """The error for a path that no format recognises, with the nearest path that is a model.

    Args:
        path: a file or a folder.
        formats: names of the formats.
        recognised: whether a path is in one of them.
    """
    for parent in list(path.absolute().parents)[:2]:
        if recognised(parent):
            return ConfigurationError(
                f"Expected a whole model. Received: {path}, which is a part of one. Did you mean "
                f"{str(parent)!r}?"
            )
    inside = sorted(path.iterdir()) if path.is_dir() else []
    if found := [str(p) for p in inside if recognised(p)]:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ConfigurationError(
            f"Expected one model. Received: {path}, which holds several things. Models in it: "
            f"{', '.join(found[:_SHOWN])}{more}."
        )
    for file in inside or [path]:
        tensors.refuse_pickle(file)
    if tables := [p for p in inside or [path] if p.suffix == ".safetensors"]:
        return ConfigurationError(
            f"Tensors alone don't determine their model. Received: {tables[0]}. Give the folder that holds "
            "its config, open_clip_config.json or config.json, too."
        )
    return ConfigurationError(
        f"Expected a model in one of the formats {', '.join(formats)}: {KINDS}. Received: {path}, "
        "which is none of them."
    )


# Tokenizers -------------------------------------------------------------------------------------

_FILES: dict[type, str] = {
    ClipBPE: "CLIP's merges: bpe_simple_vocab_16e6.txt.gz, merges.txt or a tokenizer.json with them",
    SentencePiece: "SentencePiece's model, such as spiece.model",
    WordPiece: "one piece per line, such as BERT's vocab.txt",
}


def require_tokenizer(model, given: str):
    """Raises ConfigurationError if `model`, read from `given`, can't tokenize; names the missing file."""
    own = model.tokenizer
    if own is None:
        wanted = (
            "FILE is merges.txt, tokenizer.json, vocab.txt or spiece.model, or a tokenizer's name"
        )
        raise ConfigurationError(
            f"The model in {given} brings no tokenizer. Add model.tokenizer=FILE: {wanted}."
        )
    if not own.trained:
        wanted = _FILES.get(type(own), "the file that it is made of")
        raise ConfigurationError(
            f"The model in {given} takes the ids of {type(own).__name__}, whose file does not lie beside "
            f"its weights. Add model.tokenizer=FILE: {wanted}."
        )


def give_tokenizer(model, given: str):
    """Sets the tokenizer of `model` to the one in the file or folder `given`, or of that name.

    A tokenizer of the same class as the model's, which only lacks its file, keeps its settings.

    Raises:
        ConfigurationError: there is none, or it has more ids than the model's token table has rows.
    """
    path = pathlib.Path(given)
    made = _read(path, model.tokenizer) if path.exists() else _named(given)
    if made.vocab is None or made.vocab > model.text.vocab:
        raise ConfigurationError(
            f"Expected a tokenizer of at most {model.text.vocab:,} ids, the rows of the model's token "
            f"table. Received: model.tokenizer={given} with {made.vocab or 'no'} ids."
        )
    model.tokenizer = made


def _named(given):
    if pathlib.PurePath(given).suffix:
        raise UnknownName(f"No such file or folder: model.tokenizer={given}")
    return tokenizers.get(given)


def _read(path, own):
    """The tokenizer in a file, or in the only tokenizer file of a folder."""
    if path.is_dir():
        names = (*tokenizer_files.MERGES, tokenizer_files.SPIECE, "vocabulary.spm", "vocab.txt")
        files = [path / name for name in (*names, tokenizer_files.WHOLE) if (path / name).is_file()]
        if not files:
            raise ConfigurationError(
                f"Expected a tokenizer's file in model.tokenizer={path}: one of {', '.join(names)}, "
                f"{tokenizer_files.WHOLE}."
            )
        path = files[0]
    if path.suffix == ".json":
        return tokenizer_files.of_whole(path)
    if path.suffix in (".model", ".spm"):
        kept = {**own.get_config(), "model": path} if isinstance(own, SentencePiece) else None
        return SentencePiece(**kept) if kept else SentencePiece(path)
    made = WordPiece(path)
    if made.lines and made.lines[0] == "[PAD]":
        kept = own.get_config() if isinstance(own, WordPiece) else {}
        return WordPiece(**{**kept, "vocabulary": path})
    return ClipBPE(path)
