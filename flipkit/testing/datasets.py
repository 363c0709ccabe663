"""The checks of a dataset."""

import pickle
import time

import numpy as np

from flipkit.datasets import Dataset
from flipkit.errors import BadSample
from flipkit.testing.check import Check, CheckFailed, Checks, expect


def check_dataset(make, *, milliseconds=None, expected_failures=None) -> list[Check]:
    """Returns the checks of a dataset.

    Args:
        make: the class, or a function without arguments that returns a dataset.
        milliseconds: the mean time that a sample may take. None leaves out the check of time.
        expected_failures: {name of a check: why it fails on purpose}.
    """
    return _DatasetChecks(make, milliseconds).checks(expected_failures)


class _DatasetChecks(Checks):
    kind = Dataset

    def __init__(self, make, milliseconds):
        super().__init__(make)
        self._milliseconds = milliseconds

    def has_samples(self):
        data = self._make()
        expect(isinstance(len(data), int) and len(data) > 0, "a length above 0", len(data))
        for i in self._some(data):
            sample = self._sample(data, i)
            missing = {"image", "texts", "id"} - sample.keys()
            expect(not missing, "a sample with image, texts and id", f"none of {sorted(missing)}")
            image, texts = sample["image"], sample["texts"]
            expected = "an image as bytes, or uint8 (height, width, 3)"
            if not isinstance(image, bytes):
                fits = getattr(image, "dtype", None) == "uint8" and image.shape[2:] == (3,)
                expect(fits, expected, getattr(image, "shape", type(image).__name__))
            words = isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)
            expect(words, "texts: a list of at least one string", repr(texts)[:80])
            expect(isinstance(sample["id"], str), "an id: a string", repr(sample["id"])[:80])

    def repeats_itself_in_any_order(self):
        data, other = self._make(), self._make()
        some = self._some(data)
        forward = [_frozen(self._sample(data, i)) for i in some]
        backward = [_frozen(self._sample(other, i)) for i in reversed(some)]
        expect(forward == backward[::-1], "data[i] the same in any order", "other samples")

    def tells_texts_alone(self):
        data = self._make()
        for i in self._some(data):
            expected, texts = self._sample(data, i)["texts"], data.texts(i)
            expect(texts == expected, f"texts({i}) equal to those of data[{i}]", repr(texts)[:80])

    def ends_where_it_says(self):
        data = self._make()
        for i in (-1, len(data), len(data) + 5):
            try:
                data[i]
            except IndexError:
                continue
            raise CheckFailed(
                f"Expected an IndexError from data[{i}] of {len(data)}. Received: none"
            )

    def pickles(self):
        """A feed pickles the dataset for its worker processes."""
        data = self._make()
        i = self._some(data)[0]
        first = _frozen(self._sample(data, i))  # opens files that open lazily
        try:
            again = pickle.loads(pickle.dumps(data))  # noqa: S301
        except Exception as problem:
            raise CheckFailed(
                f"Expected data that pickles, opened too. Received: {problem}"
            ) from problem
        expect(
            _frozen(self._sample(again, i)) == first, "the same sample after pickling", "another"
        )

    def takes_its_time(self):
        data = self._make()
        some = self._some(data, 16)
        self._sample(data, some[0])
        start = time.perf_counter()
        for i in some:
            self._sample(data, i)
        took = 1e3 * (time.perf_counter() - start) / len(some)
        expect(
            took <= self._milliseconds, f"at most {self._milliseconds:g} ms a sample", f"{took:.1f}"
        )

    def _included(self, name):
        return name != "takes_its_time" or self._milliseconds is not None

    @staticmethod
    def _some(data, count=6):
        return sorted({int(i) for i in np.linspace(0, len(data) - 1, count)})

    @staticmethod
    def _sample(data, i):
        try:
            return data[i]
        except BadSample as bad:  # a dataset may have bad samples, which keep their places
            return {"image": b"", "texts": ["bad"], "id": str(bad)}


def _frozen(sample):
    """Returns a sample whose values can be compared with `==`."""
    return {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in sample.items()}
