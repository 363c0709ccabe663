"""The base of every dataset: random access to raw samples."""

import operator
from typing import Any

import numpy as np

from flipkit.errors import DataError
from flipkit.registry import Configurable


class Dataset(Configurable):
    """A source of raw samples that can be reached in any order: subclass it, write two methods.

    A sample is a dictionary with at least:

    - `"image"`: an encoded file (bytes) or decoded pixels (uint8, height x width x 3),
    - `"texts"`: all texts that describe the image, a list of at least one string; one with a label
      may have none,
    - `"id"`: the origin of the sample, for an error or a reject log,

    and, where it is known, `"label"`: the image's class (int).

    Three habits make a dataset work in a `Feed`. `data[i]` is the same for the same `i`, in every
    process. The constructor only stores its arguments: the first access to a sample or the length
    opens files. Worker processes get the dataset pickled, so that objects that can't be pickled
    (open files, maps) stay out of the object or are dropped in `__getstate__`.

    `data[i]` raises `BadSample` for a sample that can't be used, which keeps its index and which a
    feed replaces; `DataError` if the data as a whole can't be used; and `IndexError` unless
    `0 <= i < len(data)`.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no __len__: how many samples it has.")

    def __getitem__(self, i) -> dict:
        raise NotImplementedError(f"{type(self).__name__} has no __getitem__: its i-th sample.")

    def texts(self, i) -> list[str]:
        """The texts of sample `i`. Override it if the dataset can read them without the image."""
        return self[i]["texts"]


def label_of(sample: dict) -> int | None:
    """The index of a sample's class, None without a label: 3, 3.0, NumPy's 3 and True are accepted.

    Raises:
        DataError: the label is something else.
    """
    label: Any = sample.get("label")
    if isinstance(label, (float, np.floating)):
        label = int(label) if label.is_integer() else str(label)
    try:
        return None if label is None else operator.index(label)
    except TypeError as error:
        raise DataError(
            "Expected a label, a class's index: a whole number. Received: "
            f"label={repr(label)[:60]} of {sample['id']}"
        ) from error
