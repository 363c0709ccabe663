"""The search for the largest batch that fits, in few compiles."""

import math
from typing import NamedTuple

CLOSE = 1.04  # times a batch that fits; one that does not fit and is nearer ends the search
FILLED = 0.99  # of the limit, which the next batch shall take
FINE = 32  # a batch is a multiple of about its 32nd part, as people choose them


class Tried(NamedTuple):
    """What a batch takes: bytes, or None where the compiler did not tell, and whether it fits."""

    memory: float | None
    fits: bool


def next_size(tried: dict[int, Tried], limit: float, parts: int) -> int | None:
    """Returns the next batch to try, or None when the largest one that fits is close enough.

    Memory is close to linear in the batch. The next batch is where the line through the two nearest
    to the limit meets it, or half-way between the largest that fits and the least that does not.

    Args:
        tried: {batch: `Tried`}, one or more.
        limit: bytes.
        parts: what each batch is a multiple of.
    """
    fits = max((size for size, each in tried.items() if each.fits), default=0)
    fails = min((size for size, each in tried.items() if not each.fits), default=math.inf)
    if fits and fails <= max(CLOSE * fits, fits + parts):
        return None
    guess = _on_the_line(tried, limit)
    if guess is None:
        guess = 2 * fits if fits else fails / 2
    elif fits < guess <= CLOSE * fits and fails == math.inf:
        return None  # as much as the line allows
    if not fits < guess < fails:  # the line is not straight
        guess = (fits + min(fails, 4 * fits)) / 2
    step = parts * max(1, 2 ** int(math.log2(max(guess / parts / FINE, 1))))
    size = int(guess // step) * step or parts
    return size if fits < size < fails else None


def _on_the_line(tried, limit):
    """The batch that takes `FILLED` of the limit, by the two nearest to it; None for fewer than two."""
    points = [(size, each.memory) for size, each in tried.items() if each.memory is not None]
    if len(points) < 2:
        return None
    (size, memory), (other, more) = sorted(points, key=lambda point: abs(point[1] - limit))[:2]
    slope = (more - memory) / (other - size)
    return size + (FILLED * limit - memory) / slope if slope > 0 else 2 * max(size, other)
