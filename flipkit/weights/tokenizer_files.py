"""The tokenizers that folders of others carry: CLIP's byte pairs in several forms, SentencePiece's."""

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
        ConfigurationError: the one tokenizer in the folder is another than CLIP's, or has more ids.
    """
    files = [folder / name for name in (*MERGES, WHOLE) if (folder / name).is_file()]
    if not files:
        return ClipBPE() if vocab == BPE_VOCAB else None
    made = _of_whole(files[0]) if files[0].name == WHOLE else ClipBPE(files[0])
    if made.vocab is not None and made.vocab > vocab:
        raise ConfigurationError(
            f"Expected a tokenizer of at most {vocab} ids, the rows of the token table. Received: "
            f"{files[0]} with {made.vocab}."
        )
    return made


def sentence_piece(folder: pathlib.Path) -> SentencePiece | None:
    """SigLIP's tokenizer with the model in `folder`; None if there is none, told if there is another."""
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


def _of_whole(path: pathlib.Path) -> ClipBPE:
    """CLIP's tokenizer with the merges in a tokenizer.json, checked to give the ids of its table."""
    whole = read_json(path)
    model = whole.get("model")
    table, merges = (
        (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    )
    if isinstance(merges, list):  # pairs, or pairs in one string
        merges = [" ".join(m) if isinstance(m, list) and m and _texts(m) else m for m in merges]
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    right = kind == "BPE" and isinstance(table, dict) and isinstance(merges, list)
    right = right and _texts(merges) and all(len(pair.split()) == 2 for pair in merges)
    right = right and model.get("end_of_word_suffix") == "</w>"
    right = right and not model.get("continuing_subword_prefix")
    right = right and "ByteLevel" in json.dumps(whole.get("pre_tokenizer"))
    if right:
        made = ClipBPE()
        with tempfile.TemporaryDirectory() as folder:
            lines = "\n".join(["#version: 0.2", *merges, ""])
            pathlib.Path(folder, "merges.txt").write_text(lines, encoding="utf-8", newline="\n")
            made.load_assets(folder)
        expected = {"".join(pair.split()): 512 + i for i, pair in enumerate(merges)}
        expected |= {"!": 0, "!</w>": 256}
        ends = table.get("<|startoftext|>"), table.get("<|endoftext|>")
        right = all(table.get(piece) == i for piece, i in expected.items())
        if right and ends == (made.start, made.end):
            return made
    raise ConfigurationError(
        f"Expected CLIP's tokenizer: byte-level BPE whose words end in </w>. Received: {path}, which "
        f"holds another of type {kind!r}. Put merges.txt beside it, or move it away and set "
        "model.tokenizer."
    )


def _texts(values) -> bool:
    return all(isinstance(value, str) for value in values)
