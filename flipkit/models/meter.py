"""Counts of the input of a train function's steps, and of the time that they waited for it."""

import time
from collections.abc import Callable

import keras

from flipkit import keras_inside


class Meter:
    """Counts, over the life of a train function, the rows of its steps and the time that they waited.

    Attributes:
        pairs: rows fed so far.
        waited: seconds spent waiting for the next batch.
        programs: how many were compiled: one, if all batches had the same shapes.
        fresh: whether the program has yet to be compiled.
        compiled: a callback after the first run of a compiled program; its time does not count.
    """

    def __init__(self):
        self.pairs, self.waited, self.programs, self.fresh = 0, 0.0, 0, True
        self.compiled: Callable[[], None] = lambda: None

    def measured(self, train_function, together=1):
        """`train_function` with its input counted; `together` is the model's `steps_per_execution`."""

        def function(state, iterator):
            return train_function(state, _Metered(iterator, self, together))

        return function


class _Metered:
    """An iterator of batches that `meter` counts; a class, as `flipkit.models.inputs.Watched` is one."""

    def __init__(self, iterator, meter, together):
        self.iterator, self.meter, self.together = iterator, meter, together

    def __next__(self):
        start = time.perf_counter()
        try:
            fed = next(self.iterator)
        finally:
            self.meter.waited += time.perf_counter() - start
        for batch in keras_inside.single_batches(fed, self.together):
            self.meter.pairs += len(keras.tree.flatten(batch)[0])
        return fed
