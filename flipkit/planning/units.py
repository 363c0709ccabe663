"""Bytes as people read them."""

from typing import NamedTuple

GIB = 2**30


class Unit(NamedTuple):
    """A unit of memory: its name, and its bytes."""

    name: str = "GiB"
    size: int = GIB

    def shown(self, size) -> str:
        """Returns a number of bytes in this unit, with as many digits as say something; "?" for None."""
        if size is None:
            return "?"
        number = size / self.size
        return f"{number:,.1f}" if number >= 10 else f"{number:.2f}"


def unit_of(sizes) -> Unit:
    """Returns the unit in which the largest of `sizes`, bytes or None, is a number of 0.1 or more."""
    largest = max((size for size in sizes if size), default=0)
    units = (Unit(), Unit("MiB", 2**20), Unit("KiB", 2**10))
    return next((unit for unit in units if largest >= 0.1 * unit.size), units[-1])
