"""Averages of weights (EMA) that an optimizer keeps: the one place that knows how Keras handles them.

Keras keeps them beside the weights (`use_ema=True`) and puts them in the weights' place at the end of each
`fit`. A run trains on from the weights themselves; evaluations and finished models take the averages.
"""

import contextlib

from keras import ops

from flipkit import keras_inside

SUFFIX = "_average"  # of the variable that keeps one


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
    """Makes the averages that the optimizer keeps, if it does, the model's weights."""
    averages = keras_inside.averages_of(model.optimizer)
    for variable, average in zip(model.trainable_variables, averages, strict=False):
        variable.assign(ops.copy(average))  # the JAX trainer gives a weight's array away


def keep_weights(optimizer):
    """Has Keras leave the weights as they are at the end of `fit`: `optimizer` is one run's own."""
    optimizer.finalize_variable_values = lambda variables: None


def own_arrays(model):
    """Gives each weight an array of its own, after Keras has put the averages' arrays into them.

    As of Keras 3.15: the next step would give each array away twice.
    """
    if getattr(model.optimizer, "use_ema", False):
        for variable in model.trainable_variables:
            variable.assign(ops.copy(variable))


def begin_averages(optimizer, variables, known):
    """Begins the averages of `variables` whose paths are not in `known` with the variables' values."""
    averages = keras_inside.averages_of(optimizer)
    for variable, average in zip(variables, averages, strict=False):
        if average.path not in known:
            average.assign(ops.copy(variable))  # programs are given both, to keep


def saved_name(variable) -> str:
    """What a checkpoint calls the average of a model's variable: `optimizer.flip_image_..._average`."""
    return f"optimizer.{variable.path.replace('/', '_')}{SUFFIX}"
