"""Values that settings may have: numbers within bounds, sizes of pictures, seeds."""

import math
import numbers
import operator
import typing
from typing import Any

from flipkit.errors import ConfigurationError

Size = int | tuple[int, int]  # the annotation of a parameter that takes a size


def sides(size) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


def is_size(value) -> bool:
    """Whether it is whole pixels above 0: one side, or a list or tuple of both."""
    both = value if isinstance(value, (list, tuple)) else (value, value)
    return len(both) == 2 and all(type(side) is int and side > 0 for side in both)


def as_size(value, name="image_size"):
    """A size as an int or a (height, width) tuple, from a list too; raises if it is no size."""
    if not is_size(value):
        raise ConfigurationError(
            f"Expected pixels, one side or (height, width). Received: {name}={value!r}"
        )
    return tuple(value) if isinstance(value, list) else value


def takes_size(annotation) -> bool:
    """Whether a parameter with this annotation takes a size, such as `Size` or `Size | None`."""
    return set(typing.get_args(Size)) <= set(typing.get_args(annotation))


def whole(least=1, **arguments):
    """Raises unless each argument is a whole number of at least `least`: `whole(depth=depth)`."""
    for name, value in arguments.items():
        known = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not known or value < least:
            raise ConfigurationError(
                f"Expected a whole number of at least {least}. Received: {name}={value!r}"
            )


def number(*, above=-math.inf, least=-math.inf, below=math.inf, **arguments: Any):
    """Raises unless each argument is a finite number within bounds: `number(above=0, rate=rate)`."""
    for name, value in arguments.items():
        known = isinstance(value, numbers.Real) and not isinstance(value, bool)
        size = float(value) if known else math.nan
        if not math.isfinite(size) or not (least <= size < below and size > above):
            bounds = (("above", above), ("of at least", least), ("below", below))
            limits = " and ".join(
                f"{word} {bound}" for word, bound in bounds if math.isfinite(bound)
            )
            raise ConfigurationError(
                f"Expected a {'number' if limits else 'finite number'}{limits and f' {limits}'}. "
                f"Received: {name}={value!r}"
            )


def share(**arguments: Any):
    """Raises unless each argument is a share in [0, 1)."""
    for name, value in arguments.items():
        known = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not known or not 0 <= float(value) < 1:
            raise ConfigurationError(f"Expected a share in [0, 1). Received: {name}={value!r}")


def as_seed(seed) -> int:
    """Returns `seed` as a Python int; raises outside of [0, 2^64), where two seeds would share streams."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 1 << 64:
        raise ConfigurationError(
            f"Expected seed as a whole number from 0 to 2**64 - 1. Received: seed={seed!r}"
        )
    return number
