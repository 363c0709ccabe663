"""Which numbers are seeds: whole ones of 64 bits, so that no two of them mean one stream."""

import operator

from flipkit.errors import ConfigurationError


def checked_seed(seed, bits: int = 64) -> int:
    """`seed` as a Python int, which fits `bits` bits with its sign.

    Whoever draws from fewer bits than a seed has would give two seeds one stream: he says here how
    many he uses, and a seed that needs more is refused.

    Raises:
        ConfigurationError: it is no whole number, or out of range.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise ConfigurationError(
            f"Expected a seed: a whole number from -2^{bits - 1} to 2^{bits - 1} - 1. "
            f"Received: seed={seed!r}"
        )
    return number
