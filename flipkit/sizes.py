"""Sizes of pictures in pixels: one side, or (height, width)."""

import typing

Size = int | tuple[int, int]  # how a parameter says that it takes one


def sides(size) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


def is_size(value) -> bool:
    """Whether it is whole pixels above 0: one side, or a list or tuple of both."""
    both = value if isinstance(value, (list, tuple)) else (value, value)
    return len(both) == 2 and all(type(side) is int and side > 0 for side in both)


def takes_size(annotation) -> bool:
    """Whether a parameter with this annotation takes a size, such as `Size` or `Size | None`."""
    return set(typing.get_args(Size)) <= set(typing.get_args(annotation))
