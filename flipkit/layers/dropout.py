"""Dropout whose choice for a row is the same in any batch."""

import contextlib
import contextvars
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from flipkit.errors import ConfigurationError
from flipkit.paths import canonical
from flipkit.random import Seed, current_seed, mix, name_key
from flipkit.registry import register

_others: contextvars.ContextVar[Any] = contextvars.ContextVar("flipkit_dropouts", default=None)


@contextlib.contextmanager
def dropping_as(others: Mapping[str, tuple[Any, Any]]):
    """Inside it a `Dropout` drops in training what another one would: see `flipkit.layers.stack`.

    Args:
        others: {path of the layer that is called: (int32 key of the other's name, its float32 rate)}, both
            of them scalars that may be traced.
    """
    token = _others.set(others)
    try:
        yield
    finally:
        _others.reset(token)


@register
class Dropout(keras.layers.Layer):
    """Sets random entries of `(batch, ...)` to 0 and scales the rest up; identity outside training.

    Inside `flipkit.random.seed_scope` (FLIP opens one) the choice is a function of (seed, step, row,
    this layer's path): a micro-batch draws what its rows would draw in the whole batch. Elsewhere it
    draws from a generator of its own, as Keras's Dropout does.

    Args:
        rate: share of entries set to 0, in [0, 1).
        noise_shape: as Keras's: axes of size 1 are dropped together; `(None, 1, 1)` on
            `(batch, length, dim)` drops whole rows, which is stochastic depth.
        seed: int, for the layer's own generator.
    """

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ConfigurationError(f"Expected a rate in [0, 1). Received: rate={rate}")
        self.rate, self.seed = rate, seed
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)  # JSON has lists
        self.supports_masking = True

    def build(self, input_shape):
        self.generator = keras.random.SeedGenerator(self.seed, name="generator")

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        shape = [ops.shape(x)[0], *x.shape[1:]]
        if self.noise_shape is not None:
            shape = [
                full if n is None else n for full, n in zip(shape, self.noise_shape, strict=True)
            ]
        seed = current_seed()
        key, rate = (_others.get() or {}).get(self.path, (self.key, self.rate))
        noise = (self.draw() if seed is None else seed.named(key)).uniform(shape)
        return ops.where(noise >= rate, x / ops.cast(1 - rate, x.dtype), ops.zeros_like(x))

    @property
    def key(self) -> int:
        """The layer's name, as `flipkit.Seed.named` takes it."""
        return name_key(canonical(self.path))

    def draw(self) -> Seed:
        """The next seed of the layer's own generator."""
        state = ops.cast(self.generator.next(), "int32")
        seed = Seed()
        seed.key = mix(ops.bitwise_xor(mix(ops.bitwise_xor(state[0], seed.key)), state[1]))
        return seed

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"rate": self.rate, "noise_shape": self.noise_shape, "seed": self.seed}
        return {**super().get_config(), **config}
