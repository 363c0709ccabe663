"""Checks, on the host, of the input of `fit` and its like, before Keras makes a program of it.

Forms (names, types, shapes) cost nothing and are checked in every batch; values where that is cheap:
all of an array that is given whole, the ids of every batch in host memory, everything in the first
batches of a stream. No step waits for it.
"""

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from flipkit import keras_inside
from flipkit.errors import DataError, nearest

FEW = 2  # first batches of a stream, whose values are checked even on a device
LIBRARIES = {"grain", "keras", "tensorflow", "torch"}  # whose data sets Keras iterates itself


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pictures (batch, height, width, 3), of one of `sizes`, or patches (batch, kept, pixels).

    Args:
        sizes: each (height, width); empty is any.
        pixels: numbers of a patch; None is whole pictures.
        remedy: advice on pictures of another size.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    pixels: int | None = None
    remedy: str = ""

    def check_form(self, name, x):
        kind = _kind(name, x)
        if kind not in "biuf":
            raise DataError(f"Expected {name} as uint8 numbers. Received: {_described(name, x)}")
        shape = tuple(x.shape)
        if self.pixels is not None:
            if len(shape) != 3 or shape[2] != self.pixels:
                raise DataError(
                    f"Expected {name} of shape (batch, kept, {self.pixels}). "
                    f"Received: {_described(name, x)}"
                )
            return
        if len(shape) != 4 or shape[3] != 3:
            hint = " Move the axis of channels to the end." if shape[1:2] == (3,) else ""
            raise DataError(
                f"Expected {name} of shape (batch, height, width, 3), red, green and blue.{hint} "
                f"Received: {_described(name, x)}"
            )
        if self.sizes and shape[1:3] not in self.sizes:
            sizes = " or ".join(f"{height} x {width}" for height, width in self.sizes)
            raise DataError(
                f"Expected pictures of {sizes} pixels. Received: {shape[1]} x {shape[2]}. "
                f"{self.remedy}"
            )

    def check_values(self, name, x):
        if _type_name(x) == "uint8":
            return
        low, high = _range(x)
        if low >= 0 and high <= 255 and (high > 1 or _kind(name, x) in "iu"):
            return
        hint = "Give the uint8 pictures themselves."
        if not math.isfinite(low + high):
            hint = "They hold numbers that are not finite."
        elif low < 0:
            hint = f"They look normalised already. {hint}"
        elif high <= 1:
            hint = "They look divided by 255 already: (255 * x).round().astype('uint8') undoes it."
        raise DataError(
            f"Expected {name} from 0 to 255: the model normalises pixels itself. Received: "
            f"{_described(name, x)} from {low:.4g} to {high:.4g}. {hint}"
        )


@dataclasses.dataclass(frozen=True)
class Ids:
    """Whole numbers from 0 on: tokens, places or classes.

    Args:
        below: how many there are.
        why: the origin of that number.
        length: how many a row has at most; 0 is one number a row, without an axis, None any.
    """

    below: int
    why: str
    length: int | None = None

    def check_form(self, name, x):
        if _kind(name, x) in "OSUT":
            hint = "model.tokenizer(texts, model.text.length) makes ids of strings. "
            raise DataError(
                f"Expected {name} as int32 ids. {hint if name == 'text' else ''}"
                f"Received: {_described(name, x)}"
            )
        if _kind(name, x) not in "iu":
            raise DataError(f"Expected {name} as int32 ids. Received: {_described(name, x)}")
        shape = tuple(x.shape)
        if self.length == 0 and len(shape) != 1:
            raise DataError(
                f"Expected {name} of shape (batch,), a whole number each. Received: {_described(name, x)}"
            )
        if self.length != 0 and len(shape) != 2:
            raise DataError(
                f"Expected {name} of shape (batch, ids). Received: {_described(name, x)}"
            )
        if self.length and x.shape[1] > self.length:
            raise DataError(
                f"Expected at most {self.length} ids a row in {name}. Received: {_described(name, x)}"
            )

    def check_values(self, name, x):
        low, high = _range(x)
        if low < 0 or high >= self.below:
            seen = f"{low:.0f}" if low < 0 else f"{high:.0f}"
            hint = " Padding is 0, and nothing is left out by a negative id." if low < 0 else ""
            raise DataError(
                f"Expected {name} from 0 to {self.below - 1}: {self.why}. Received: {seen}.{hint}"
            )


def _kind(name, x) -> str:
    """NumPy's letter for the kind of numbers in `x`; raises if it is no array."""
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        held = f" of {len(x)}" if isinstance(x, (list, tuple)) else ""
        strings = isinstance(x, str) or (held and len(x) and isinstance(x[0], str))
        hint = "model.tokenizer(texts, model.text.length) makes ids of strings. " if strings else ""
        raise DataError(
            f"Expected {name} as one array with a row for each sample. {hint}"
            f"Received: {type(x).__name__}{held}{' strings' if strings else ''}"
        )
    kind = getattr(x.dtype, "kind", None)
    if kind is None or kind == "V":  # TensorFlow's and torch's types, and bfloat16
        known = _type_name(x)
        return "f" if "float" in known else known[0] if known[0] in "bui" else "O"
    return kind


def _type_name(x) -> str:
    return getattr(x.dtype, "name", None) or str(x.dtype).rpartition(".")[2]


def _described(name, x) -> str:
    return f"{name} as {_type_name(x)} {tuple(x.shape)}"


def _range(x) -> tuple[float, float]:
    """Least and largest number; (0, 2) for an array of several processes, or an empty one."""
    if not getattr(x, "is_fully_addressable", True) or not math.prod(x.shape):
        return 0.0, 2.0
    if not hasattr(x, "min"):
        x = np.asarray(x)
    return float(x.min()), float(x.max())


class Check:
    """The check of the input of one call of `fit`, `evaluate` or `predict`.

    Args:
        expected: {name: `Pixels` or `Ids`}.
        needed: groups of names; a batch has to hold one of each group.
        targets: whether to reject anything beside a dict; `predict` leaves it out, as Keras does.
    """

    def __init__(self, expected, needed, *, targets=True):
        self.expected, self.needed, self.targets = expected, needed, targets
        self.left = FEW

    @property
    def example(self):
        """A batch as it should be."""
        return "{" + ", ".join(f"'{group[0]}': ..." for group in self.needed) + "}"

    def arguments(self, x, y=None, sample_weight=None, class_weight=None):
        """Checks the input before the first batch; for arrays that is the whole check."""
        self._refuse(y, sample_weight, class_weight)
        if isinstance(x, dict):
            self._form(x)
            self._values(x, all_of_it=True)
            self.left = 0
        elif not is_stream(x) and not is_iterator(x):
            raise DataError(self._no_dict(x))

    def batch(self, data):
        """Checks a batch before the program gets it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._refuse(y, sample_weight)
        if not isinstance(x, dict):
            raise DataError(self._no_dict(x))
        self._form(x)
        self._values(x, all_of_it=self.left > 0)
        self.left -= 1

    def _refuse(self, y, sample_weight, class_weight=None):
        if not self.targets:
            return
        for name, value in (("sample_weight", sample_weight), ("class_weight", class_weight)):
            if value is not None:
                raise DataError(
                    f"The loss weighs all rows alike. Expected no {name}. Received: {name} as "
                    f"{type(value).__name__}. Leave it out; repeat the samples that count more."
                )
        if y is not None:
            raise DataError(
                f"Expected one dict, {self.example}: what belongs together goes in together. "
                f"Received: x and y. Put both into the dict, or map the data set so."
            )

    def _no_dict(self, x):
        if hasattr(x, "from_step"):
            hint = "Give fit batches.from_step(0)."
        elif hasattr(x, "__getitem__") and hasattr(x, "__len__") and not _is_plain(x):
            hint = "Open a data set with flipkit.Feed().open(data, model, batch_size).from_step(0)."
        elif hasattr(x, "__iter__") and not _is_plain(x):
            hint = "Give a generator of batches: (batch for batch in data)."
        else:
            hint = "Put the arrays into one dict."
        return f"Expected a dict, {self.example}, or a stream of such. {hint} Received: {_type(x)}"

    def _form(self, x):
        for group in self.needed:
            if not set(group) & x.keys():
                close = nearest(group[0], map(str, x)).partition(" Known")[0]
                close = close if close.startswith("Did") else ""
                wanted = " or ".join(map(repr, group))
                raise DataError(
                    f"Expected a dict with {wanted}; the batch lacks it. {close}"
                    f"{' ' if close else ''}Received the keys: {sorted(map(str, x))}"
                )
        for name, expected in self.expected.items():
            if name in x:
                expected.check_form(name, x[name])

    def _values(self, x, *, all_of_it):
        for name, expected in self.expected.items():
            cheap = isinstance(expected, Ids) and isinstance(x.get(name), np.ndarray)
            if name in x and (all_of_it or cheap):
                expected.check_values(name, x[name])


def _is_plain(x):
    return isinstance(x, (str, bytes, list, tuple, dict)) or hasattr(x, "dtype")


def _type(x):
    name = type(x).__name__
    if isinstance(x, (list, tuple)):
        return f"a {name} of {', '.join(type(item).__name__ for item in x[:3])}"
    return name


def is_stream(x) -> bool:
    """Whether `x` is a data set, batch after batch, of a library that Keras supports."""
    if _is_plain(x):
        return False
    roots = {parent.__module__.partition(".")[0] for parent in type(x).__mro__}
    return bool(roots & LIBRARIES)


def is_iterator(x) -> bool:
    """Whether `x` can be iterated only once."""
    return hasattr(x, "__next__") and not hasattr(x, "dtype")


def opened(x):
    """`x` as Keras takes it: dicts become tuples of one, an iterator a generator.

    Keras 3.15 takes the keys of a torch loader's dict.
    """
    if is_stream(x) and hasattr(x, "collate_fn"):
        x = copy.copy(x)
        x.collate_fn = _InTuple(x.collate_fn)
        return x
    return (_in_tuple(batch) for batch in x) if is_iterator(x) else x


@dataclasses.dataclass
class _InTuple:
    """The result of `collate`, in a tuple. A class, so that a loader can pickle it for its workers."""

    collate: Callable[[Any], Any]

    def __call__(self, samples):
        return _in_tuple(self.collate(samples))


def _in_tuple(batch):
    return (batch,) if isinstance(batch, dict) else batch


def is_ordered(x) -> bool:
    """Whether Keras can't shuffle `x`, and would warn about it."""
    finite = isinstance(x, keras.utils.PyDataset) and x.num_batches is not None
    return (is_stream(x) or is_iterator(x)) and not finite


@contextlib.contextmanager
def until_exhausted(x, steps):
    """Inside it Keras doesn't warn that a stream ends, if the caller gave no number of steps.

    Keras can't find the length of an iterator or a Grain data set, and takes its end for a lack of data.
    """
    with warnings.catch_warnings():
        if steps is None and is_ordered(x):
            warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        yield


def check_epochs(x, epochs, steps):
    """Raises if a second epoch needs an input that can be iterated only once."""
    if is_iterator(x) and steps is None and epochs > 1:
        raise DataError(
            "An iterator can be gone through once. Expected steps_per_epoch, so that each epoch takes "
            f"its share, or epochs=1. Received: {_type(x)} and epochs={epochs}"
        )


class Watched:
    """An iterator of batches, each checked; `together` are those of a model's `steps_per_execution`.

    A class: a generator would swallow the StopIteration that ends Keras's epoch one batch too late.
    """

    def __init__(self, iterator, check, together=1):
        self.iterator, self.check, self.together = iterator, check, together

    def __next__(self):
        fed = next(self.iterator)
        for batch in keras_inside.single_batches(fed, self.together):
            self.check.batch(batch)
        return fed
