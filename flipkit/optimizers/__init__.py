"""Optimizers that select their variables by path."""

import keras

from flipkit import plugins, registry
from flipkit.errors import UnknownName, nearest
from flipkit.optimizers.adamw import AdamW as AdamW
from flipkit.optimizers.averages import averaged_weights as averaged_weights
from flipkit.optimizers.averages import keep_weights as keep_weights
from flipkit.optimizers.averages import own_arrays as own_arrays
from flipkit.optimizers.averages import saved_name as saved_name
from flipkit.optimizers.averages import take_averages as take_averages
from flipkit.optimizers.lars import LARS as LARS
from flipkit.optimizers.moments import take_moments as take_moments
from flipkit.optimizers.rates import layer_decay as layer_decay


def get(identifier) -> keras.optimizers.Optimizer:
    """The optimizer that a name (flipkit's first, then Keras's), object or config describes."""
    if isinstance(identifier, str) and ":" not in identifier:
        known = plugins.names("optimizers")
        if identifier not in known:
            try:
                return keras.optimizers.get(identifier)
            except ValueError:
                raise UnknownName(
                    f"Unknown optimizer: {identifier!r}. {nearest(identifier, known)} Keras's own "
                    "are known too."
                ) from None
    return registry.get("optimizers", identifier, keras.optimizers.Optimizer)


def unscaled(optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside a `LossScaleOptimizer`; any other one as it is."""
    return getattr(optimizer, "inner_optimizer", optimizer)
