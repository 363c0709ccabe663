"""Maskers of texts: the first words, a run of them, nouns first, rare words first."""

import flipkit

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with


@flipkit.hookimpl
def flipkit_maskers():
    """The names in recipes: `text_masker="syntax"`."""
    module = "flipkit_text_maskers.maskers"
    return {
        "frequency": f"{module}:FrequencyMasker",
        "syntax": f"{module}:SyntaxMasker",
        "truncate": f"{module}:TruncateMasker",
        "word_block": f"{module}:WordBlockMasker",
    }
