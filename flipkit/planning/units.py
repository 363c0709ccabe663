"""Bytes and FLOPs as people read them."""

from typing import NamedTuple

GIB = 2**30


class Unit(NamedTuple):
    """A unit: its name, and how many bytes or FLOPs it is."""

    name: str = "GiB"
    size: int = GIB

    def shown(self, size) -> str:
        """Returns a number in this unit, with as many digits as say something; "?" for None."""
        if size is None:
            return "?"
        number = size / self.size
        return f"{number:,.1f}" if number >= 10 else f"{number:.2f}"


BYTES = (Unit(), Unit("MiB", 2**20), Unit("KiB", 2**10))
FLOPS = (Unit("TFLOPs", 10**12), Unit("GFLOPs", 10**9), Unit("MFLOPs", 10**6))


def unit_of(sizes, units=BYTES) -> Unit:
    """Returns the unit in which the largest of `sizes`, numbers or None, is 0.1 or more."""
    largest = max((size for size in sizes if size), default=0)
    return next((unit for unit in units if largest >= 0.1 * unit.size), units[-1])
