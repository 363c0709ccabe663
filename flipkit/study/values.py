"""Parses settings with several values, and seeds, from the command line."""

from flipkit.errors import ConfigurationError
from flipkit.settings import parse


def split_values(text: str) -> list[str]:
    """`a,b,(1,2)` -> `["a", "b", "(1,2)"]`: splits at commas outside brackets and quotes.

    A literal, such as a list, is one value.
    """
    parts, depth, quote, start = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def seeds_of(text: str) -> list[int]:
    """`3` -> `[0, 1, 2]`, `1,2` -> `[1, 2]`, `4,` -> `[4]`."""
    value = parse(text)
    value = tuple(range(value)) if type(value) is int else value
    if not isinstance(value, (tuple, list)) or not value or any(type(v) is not int for v in value):
        raise ConfigurationError(
            f"Expected how many seeds, such as 3, or which, such as 0,1 or 4,. Received: seeds={text}"
        )
    return list(dict.fromkeys(value))
