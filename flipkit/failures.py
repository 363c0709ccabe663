"""What a compiler says when a program does not fit: the one place that reads such messages."""

import re
from typing import NamedTuple

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_FORMS = (  # libtpu's, as of 0.0.42
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"memory required for HLO \w+ \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
)


class Memory(NamedTuple):
    """Bytes that a program needs, and bytes that there are."""

    needed: float
    limit: float


def memory(problem) -> Memory | None:
    """Returns the bytes that a program needed and had, from a compiler's error; None if it says none."""
    for form in _FORMS:
        if found := re.search(form, str(problem)):
            (needed, unit), (limit, of) = found.groups()[:2], found.groups()[2:]
            return Memory(float(needed) * _UNITS[unit], float(limit) * _UNITS[of])
    return None


def is_memory(problem) -> bool:
    """Whether a program failed for want of memory."""
    return "RESOURCE_EXHAUSTED" in str(problem) or memory(problem) is not None


def first_line(problem) -> str:
    """Returns the first line of an error's message, without the code that it may begin with."""
    line = next(
        (line for line in str(problem).splitlines() if line.strip()), type(problem).__name__
    )
    return re.sub(r"^[A-Z_]+: ", "", line.strip())
