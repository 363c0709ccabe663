"""Tokenizers in foreign folders: CLIP's byte pairs in several forms, SentencePiece's."""

import json
import pathlib
import tempfile

from absl import logging

from flipkit.errors import ConfigurationError
from flipkit.tokenizers import ClipBPE, SentencePiece
from flipkit.weights.foreign import read_json

MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
SPIECE, WHOLE = "spiece.model", "tokenizer.json"
BPE_VOCAB = 49_408


def byte_pairs(folder: pathlib.Path, vocab: int) -> ClipBPE | None:
    """CLIP's tokenizer with the merges in `folder`; without any where `vocab` is CLIP's, else None.

    Args:
        vocab: rows of the token table.

    Raises:
        ConfigurationError: the only tokenizer in the folder is not CLIP's, or has more ids.
    """
    files = [folder / name for name in (*MERGES, WHOLE) if (folder / name).is_file()]
    if not files:
        return ClipBPE() if vocab == BPE_VOCAB else None
    made = of_whole(files[0]) if files[0].name == WHOLE else ClipBPE(files[0])
    if made.vocab is not None and made.vocab > vocab:
        raise ConfigurationError(
            f"Expected a tokenizer of at most {vocab} ids, the rows of the token table. Received: "
            f"{files[0]} with {made.vocab}."
        )
    return made


def sentence_piece(folder: pathlib.Path) -> SentencePiece | None:
    """SigLIP's tokenizer with the model in `folder`; None, with a warning if another kind is there."""
    if (folder / SPIECE).is_file():
        return SentencePiece(folder / SPIECE, clean="canonicalize", add_eos=True, pad=1)
    if (folder / WHOLE).is_file():
        logging.warning(
            "%s is not read: flipkit takes SentencePiece's own file, %s. The model comes without a "
            "tokenizer; set model.tokenizer.",
            folder / WHOLE,
            SPIECE,
        )
    return None


def of_whole(path: pathlib.Path) -> ClipBPE:
    """CLIP's tokenizer with the merges in a tokenizer.json, whose ids have to be those of its table."""
    whole = read_json(path)
    model = whole.get("model")
    model = model if isinstance(model, dict) else {}
    table, merges = model.get("vocab"), _lines(model.get("merges"))
    right = model.get("type") == "BPE" and model.get("end_of_word_suffix") == "</w>"
    right = right and not model.get("continuing_subword_prefix")
    right = right and "ByteLevel" in json.dumps(whole.get("pre_tokenizer"))
    if right and isinstance(table, dict) and merges is not None:
        made = ClipBPE()
        with tempfile.TemporaryDirectory() as folder:
            lines = "\n".join(["#version: 0.2", *merges, ""])
            pathlib.Path(folder, "merges.txt").write_text(lines, encoding="utf-8", newline="\n")
            made.load_assets(folder)
        ids = {"".join(pair.split()): 512 + i for i, pair in enumerate(merges)}
        ids |= {"!": 0, "!</w>": 256, "<|startoftext|>": made.start, "<|endoftext|>": made.end}
        if all(table.get(piece) == i for piece, i in ids.items()):
            return made
    raise ConfigurationError(
        f"Expected CLIP's tokenizer: byte-level BPE whose words end in </w>. Received: {path}, which "
        f"holds another of type {model.get('type')!r}. Put merges.txt beside it, or move it away and "
        "set model.tokenizer."
    )


def _lines(merges) -> list[str] | None:
    """Merges as lines of two pieces, from pairs or from lines; None if they are neither."""
    if not isinstance(merges, list):
        return None
    found = [pair.split() if isinstance(pair, str) else pair for pair in merges]
    right = all(isinstance(pair, list) and len(pair) == 2 for pair in found)
    right = right and all(isinstance(piece, str) for pair in found for piece in pair)
    return [" ".join(pair) for pair in found] if right else None
