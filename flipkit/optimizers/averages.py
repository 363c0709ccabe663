"""Averages of weights (EMA) that an optimizer keeps: the one module that handles them as Keras does.

Keras keeps them beside the weights (`use_ema=True`) and puts them in the weights' place at the end of each
`fit`. A run trains on from the weights themselves; evaluations and finished models take the averages.
"""

import contextlib

from keras import ops

from flipkit import keras_inside

SUFFIX = "_average"  # of the variable of an average


@contextlib.contextmanager
def averaged_weights(model):
    """Inside it the model has its optimizer's averages as weights, if the optimizer keeps them."""
    optimizer = getattr(model, "optimizer", None)
    averaging = getattr(optimizer, "use_ema", False) and int(optimizer.iterations) > 0
    weights = [ops.convert_to_numpy(w) for w in model.trainable_variables] if averaging else []
    if averaging:
        take_averages(model)
    try:
        yield model
    finally:
        for variable, weight in zip(model.trainable_variables, weights, strict=False):
            variable.assign(weight)


def take_averages(model):
    """Makes the optimizer's averages, if it keeps them, the model's weights."""
    averages = keras_inside.averages_of(model.optimizer)
    for variable, average in zip(model.trainable_variables, averages, strict=False):
        variable.assign(ops.copy(average))  # the JAX trainer donates a weight's array


def keep_weights(optimizer):
    """Prevents Keras from changing the weights at the end of `fit`: `optimizer` is one run's own."""
    optimizer.finalize_variable_values = lambda variables: None


def own_arrays(model):
    """Copies the array of each weight, after Keras has put the averages' arrays into them.

    As of Keras 3.15: the next step would donate each array twice.
    """
    if getattr(model.optimizer, "use_ema", False):
        for variable in model.trainable_variables:
            variable.assign(ops.copy(variable))


def begin_averages(optimizer, variables, known):
    """Begins the averages of `variables` whose paths are not in `known` with the variables' values."""
    averages = keras_inside.averages_of(optimizer)
    for variable, average in zip(variables, averages, strict=False):
        if average.path not in known:
            average.assign(ops.copy(variable))  # programs get both, to keep


def saved_name(variable) -> str:
    """A checkpoint's name of the average of a model's variable: `optimizer.flip_image_..._average`."""
    return f"optimizer.{variable.path.replace('/', '_')}{SUFFIX}"
