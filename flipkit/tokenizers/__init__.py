"""Text to ids: word pieces as BERT and FLIP cut them, CLIP's byte pairs, SentencePiece, plain bytes."""

from flipkit import registry
from flipkit.tokenizers.clip_bpe import ClipBPE
from flipkit.tokenizers.sentence_piece import SentencePiece
from flipkit.tokenizers.tokenizer import Bytes, Tokenizer
from flipkit.tokenizers.wordpiece import WordPiece

__all__ = ["Bytes", "ClipBPE", "SentencePiece", "Tokenizer", "WordPiece", "get"]


def get(identifier) -> Tokenizer | None:
    """The tokenizer that a name, an object, a class or a config describes; None stays None."""
    return registry.get("tokenizers", identifier, Tokenizer)
