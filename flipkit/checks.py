"""Numbers that settings may have: each check names the argument, what was expected and what came."""

import math
import numbers
from typing import Any

from flipkit.errors import ConfigurationError


def whole(least=1, **arguments):
    """Refuses what is no whole number of at least `least`: `whole(depth=depth, heads=heads)`."""
    for name, value in arguments.items():
        known = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not known or value < least:
            raise ConfigurationError(
                f"Expected a whole number of at least {least}. Received: {name}={value!r}"
            )


def number(*, above=-math.inf, least=-math.inf, below=math.inf, **arguments: Any):
    """Refuses what is no finite number within bounds: `number(above=0, temperature=temperature)`."""
    for name, value in arguments.items():
        known = isinstance(value, numbers.Real) and not isinstance(value, bool)
        size = float(value) if known else math.nan
        if not math.isfinite(size) or not (least <= size < below and size > above):
            bounds = (("above", above), ("of at least", least), ("below", below))
            told = " and ".join(f"{word} {bound}" for word, bound in bounds if math.isfinite(bound))
            raise ConfigurationError(
                f"Expected a {'number' if told else 'finite number'}{told and f' {told}'}. "
                f"Received: {name}={value!r}"
            )


def share(**arguments: Any):
    """Refuses what is no share in [0, 1)."""
    for name, value in arguments.items():
        known = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not known or not 0 <= float(value) < 1:
            raise ConfigurationError(f"Expected a share in [0, 1). Received: {name}={value!r}")


def _is_real(value):
    """Whether it is a finite number, of Python or NumPy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
