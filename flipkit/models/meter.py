"""What the steps of a train function were fed, and how long they waited for it."""

import time
from collections.abc import Callable

import keras


class Meter:
    """Counts, over the life of a train function, what its steps were fed and how long they waited.

    Attributes:
        pairs: rows fed so far.
        waited: seconds spent waiting for the next batch.
        programs: how many were compiled: one, if all batches had the same shapes.
        fresh: whether the program has yet to be compiled.
        compiled: what is called when it was, and has run once; nothing of the time counts.
    """

    def __init__(self):
        self.pairs, self.waited, self.programs, self.fresh = 0, 0.0, 0, True
        self.compiled: Callable[[], None] = lambda: None

    def measured(self, train_function):
        """`train_function` with its input watched."""

        def function(state, iterator):
            return train_function(state, _Metered(iterator, self))

        return function


class _Metered:
    """An iterator of batches that `meter` counts; a class, as `flipkit.models.inputs.Watched` is one."""

    def __init__(self, iterator, meter):
        self.iterator, self.meter = iterator, meter

    def __next__(self):
        start = time.perf_counter()
        try:
            batch = next(self.iterator)
        finally:
            self.meter.waited += time.perf_counter() - start
        self.meter.pairs += len(keras.tree.flatten(batch)[0])
        return batch
