"""Random numbers that are functions of (seed, step, row, name), and initial values of (seed, path).

Nothing here keeps a state: any draw can be repeated, on any number of devices, in any order, for any
part of a batch.
"""

import contextlib
import contextvars
import hashlib
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from flipkit import keras_inside
from flipkit.checks import as_seed
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical


def _shift_right(x, bits: int):
    """Logical right shift of int32, which keras.ops lacks."""
    return ops.bitwise_and(ops.right_shift(x, bits), (1 << (32 - bits)) - 1)


def mix(x):
    """int32 -> int32, a bijection whose every output bit depends on every input bit.

    The "lowbias32" finaliser of Chris Wellons's hash-prospector (2018). Integer arithmetic wraps
    alike on every backend, so JAX, TensorFlow and torch compute the same numbers.
    """
    x = ops.bitwise_xor(x, _shift_right(x, 16))
    x = x * 0x7FEB352D
    x = ops.bitwise_xor(x, _shift_right(x, 15))
    x = x * (0x846CA68B - (1 << 32))
    return ops.bitwise_xor(x, _shift_right(x, 16))


def _signed(number: int) -> int:
    """32 bits as int32."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def name_key(name: str) -> int:
    """A name as int32."""
    return zlib.crc32(name.encode()) - (1 << 31)


class Seed(keras.random.SeedGenerator):
    """The randomness of one step.

    FLIP passes it to maskers, and `flipkit.Dropout` draws from it inside `seed_scope`. It is a
    `keras.random.SeedGenerator`, so `keras.random.uniform(shape, seed=seed)` takes it, yet it has no
    state: equal Seeds return equal numbers. Prefer `seed.uniform(shape)`, whose first axis
    is the batch and whose numbers for a row do not depend on the other rows.

    Args:
        seed: int in [0, 2^64), the run's seed; any two have streams of their own.
        step: int or int32 scalar, the training step.
        rows: int32 `(batch,)`, each row's place in the global batch; None counts from 0.
    """

    def __init__(self, seed=0, step=0, rows=None):
        # No super().__init__(): it would create a state variable.
        upper, lower = divmod(as_seed(seed), 1 << 32)
        number, self.upper = _signed(lower), _signed(upper)
        # mix(0) is 0, and from 0 row 1 of step 0 would draw what row 0 of step 1 does.
        start = mix(ops.convert_to_tensor(number ^ name_key("seed"), "int32"))
        self.key = mix(ops.bitwise_xor(start, ops.cast(step, "int32")))
        self.rows = rows
        self.name = "seed"

    def named(self, name) -> "Seed":
        """The seed of the component `name`: independent of every other name's.

        Args:
            name: a str, or its `name_key`, which may be traced.
        """
        key = name_key(name) if isinstance(name, str) else name
        child = object.__new__(Seed)
        child.key = mix(ops.bitwise_xor(self.key, key))
        child.rows, child.name, child.upper = self.rows, name, self.upper
        return child

    def next(self, ordered=True):
        """The key that keras.random draws from, as Keras's seed pair."""
        dtype = "uint32" if keras.backend.backend() == "jax" else "int32"
        return ops.cast(ops.stack([self.key, ops.zeros_like(self.key) + self.upper]), dtype)

    def uniform(self, shape):
        """Float32 in [0, 1), `shape` = (batch, ...): row by row, the same for a row in any batch."""
        size = 1
        for axis in shape[1:]:
            size *= axis  # Python ints: all axes but the batch are static
        rows = ops.arange(shape[0], dtype="int32") if self.rows is None else self.rows
        row_keys = mix(ops.bitwise_xor(mix(rows), self.key))
        places = mix(ops.arange(size, dtype="int32"))
        bits = mix(ops.bitwise_xor(ops.expand_dims(row_keys, 1), ops.expand_dims(places, 0)))
        if self.upper:  # the key holds 32 bits of the seed; this is a bijection too
            bits = mix(ops.bitwise_xor(bits, self.upper))
        numbers = ops.cast(_shift_right(bits, 8), "float32") * 2.0**-24
        return ops.reshape(numbers, (-1, *shape[1:]))


_current = contextvars.ContextVar("flipkit_seed", default=None)
_rows = contextvars.ContextVar("flipkit_rows", default=None)


@contextlib.contextmanager
def rows_scope(rows):
    """Inside it a step's seed is for these rows of the batch: int32 (rows,), each one's place in it."""
    token = _rows.set(rows)
    try:
        yield rows
    finally:
        _rows.reset(token)


def current_rows():
    """The rows in force, or None outside every `rows_scope`: all rows of the batch, in order."""
    return _rows.get()


@contextlib.contextmanager
def seed_scope(seed: Seed | None):
    """Inside it, `flipkit.Dropout` layers draw from `seed`."""
    token = _current.set(seed)
    try:
        yield seed
    finally:
        _current.reset(token)


def current_seed() -> Seed | None:
    """The Seed in force, or None outside every `seed_scope`."""
    return _current.get()


@contextlib.contextmanager
def initial_values(layer, seed: int):
    """Variables that `layer` creates inside start as functions of (seed, canonical path) alone.

    So a variable begins the same, independent of the rest of the model and of devices. Variables with a
    value keep it, and so do initialisers without randomness.
    """
    seed = as_seed(seed)
    with keras.StatelessScope():
        yield
        for variable in layer.variables:
            # Keras keeps the initialiser of a variable created in a StatelessScope until the scope ends.
            initializer: Any = keras_inside.initializer(variable)
            key = _initial_key(canonical(variable.path), seed)
            config = getattr(initializer, "get_config", dict)()
            if "seed" in config:  # every random initialiser of Keras has one
                seeded = type(initializer).from_config({**config, "seed": key})
                keras_inside.set_initializer(variable, seeded)
            elif initializer is not None and variable.name == "seed_generator_state":
                keras_inside.set_initializer(variable, _SeedState(key))


def _initial_key(path, seed):
    """31 bits, the size of a seed of Keras's initialisers, from all bits of a larger seed."""
    if seed < 1 << 31:
        return (name_key(path) ^ seed) % (1 << 31)
    digest = hashlib.blake2b(f"{seed} {path}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) % (1 << 31)


class _SeedState:
    """The first state of a keras SeedGenerator, as its own initialiser would make it."""

    def __init__(self, key):
        self.key = key

    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor([self.key, 0], dtype=dtype)


def start_with(variable, value):
    """Sets a variable's first value: now, or when the model that is being built gets its values.

    For towers with pretrained weights: call it in `build`, once the variable is there.

    Args:
        value: an array, or a function without arguments that returns one. Keras calls it when the variable
            gets its value, and not where only shapes are computed.
    """
    if keras_inside.initializer(variable) is None:
        variable.assign(value() if callable(value) else value)
    else:
        keras_inside.set_initializer(variable, _Given(variable.path, value))


class _Given:
    """An initialiser that returns a given value."""

    def __init__(self, path, value):
        self.path, self.value = path, value

    def __call__(self, shape, dtype=None):
        value = np.asarray(self.value() if callable(self.value) else self.value)
        if value.shape != tuple(shape):
            raise ConfigurationError(
                f"Expected a first value of shape {tuple(shape)} for {self.path}. "
                f"Received: {value.shape}"
            )
        return ops.convert_to_tensor(value, dtype=dtype)
