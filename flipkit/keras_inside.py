"""Every name of Keras that flipkit uses and Keras does not document, one function each.

Tested with Keras 3.15.1 and 3.16.0.dev on 2026-11-27; pyproject.toml allows no later release until
`tests/test_keras_inside.py`, one test a name, has passed with it. Each docstring states why there is no
public way, and what to do when the name goes.
"""

import contextlib
import sys

import keras
from keras.src.backend.common import global_state

from flipkit.errors import FlipkitError

# Keras appends to an exception that a layer raises what the layer was called with, pages of arrays, unless
# this attribute is set. When it goes: a call of `keras.config.disable_traceback_filtering` does not help;
# catch and raise again in `Trainable.__call__`.
FlipkitError._keras_call_info_injected = True  # pyright: ignore[reportAttributeAccessIssue]


def initializer(variable):
    """The function that returns the first value of `variable`, while a StatelessScope is open; else None.

    Keras draws the seeds of initializers in constructors, so that first values depend on the order of
    construction. When it goes: `assign` drawn values after the build, which initialises twice.
    """
    return getattr(variable, "_initializer", None)


def set_initializer(variable, value):
    """Makes `value` the function that returns the first value of `variable`. See `initializer`."""
    variable._initializer = value


def rename(variable, name: str):
    """Renames `variable`: the last part of its path.

    Keras numbers a variable without a name in the order of creation (Keras Hub 0.32 has one), and a
    checkpoint would not find it again. When it goes: wrap the layer that owns the variable in a named one.
    """
    variable._name = name
    variable._path = f"{variable.path.rpartition('/')[0]}/{name}"


@contextlib.contextmanager
def without_tensorflow():
    """Inside it Keras serialises without importing TensorFlow, which would take seconds and a GPU.

    Keras 3.15 checks whether each object that it serialises is a TensorShape, and imports TensorFlow
    wherever it is installed to do so. One that is imported already stays in use. When it goes: remove it
    if Keras stopped importing, else set `sys.modules["tensorflow"] = None` inside.
    """
    from keras.src.utils import module_utils

    lazy = module_utils.tensorflow
    untouched = "tensorflow" not in sys.modules and lazy._available is None
    if untouched:
        lazy._available = False
    try:
        yield
    finally:
        if untouched:
            lazy._available = None


@contextlib.contextmanager
def forgetting_variables():
    """Variables that the block creates, in a StatelessScope without values, never get any.

    Keras keeps a list of variables that wait for their values, and initialises all of them at the end of
    the next StatelessScope: it would hold a copy that was made for its shapes, and fill it while another
    model is built. When it goes: check with `tests/test_plan.py` whether memory is still taken.
    """
    waiting = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    try:
        yield
    finally:
        del waiting[before:]


def reading_in(dtype: str | None):
    """A context manager: inside it float variables are read in `dtype`; None is their own.

    Keras opens one around each layer's call, so that what a variable's value is depends on the layer that
    runs. When it goes: read values where no layer runs, or drop "of the dtype" and refuse mixed ones.
    """
    from keras.src.backend import AutocastScope

    return AutocastScope(dtype)


def lay_out(variable):
    """Gives `variable` the layout that the distribution in force has for it; returns that layout.

    Keras does so when a variable gets its first value, and a variable that is planned gets none. An
    optimizer gives its moments the layout of the variable that they belong to, if it has one already. When
    it goes: make the layouts with `Distribution.get_variable_layout`, and match moments by their names.
    """
    variable._initialize_layout()
    return variable._layout


def layers_of(model) -> list:
    """Every layer of `model`, nested ones too. `model.layers` holds only the outer ones.

    When it goes: walk the attributes of each layer.
    """
    return list(model._flatten_layers())


def index_of(optimizer, variable) -> int:
    """The index of `variable` among those that `optimizer` was built with.

    When it goes: keep a dict of paths in `build`.
    """
    return optimizer._get_variable_index(variable)


def averages_of(optimizer) -> list:
    """The moving averages of weights that `optimizer` keeps, in the order of its variables; [] if none.

    Keras's own SwapEMAWeights reads this attribute. When it goes: find them among `optimizer.variables`
    by their names, which end in `_average`.
    """
    return getattr(optimizer, "_model_variables_moving_average", None) or []


def single_batches(fed, together: int) -> list:
    """The batches in one item of the iterator that Keras passes to a train, test or predict function.

    With `steps_per_execution=together` Keras 3.16 hands out that many, stacked, or fewer in a list of its
    own class; Keras 3.15 hands out single ones. When the class goes: see how its JAX trainer's
    `_build_multi_step_iterator_step` takes them apart.

    Args:
        fed: a dict of arrays, or a tuple of one.
        together: the model's `steps_per_execution`.
    """
    from keras.src.trainers.data_adapters import data_adapter_utils

    several = getattr(data_adapter_utils, "PartialBatchList", None)
    if several is None or together == 1:
        return [fed]
    if isinstance(fed, several):
        return list(fed)
    count = len(keras.tree.flatten(fed)[0])
    return [keras.tree.map_structure(lambda x, i=i: x[i], fed) for i in range(count)]


def update_metrics(model, metrics, loss, x, y, y_pred, sample_weight):
    """The logs and the new values of `model`'s metrics, from the values `metrics`, inside a JAX program.

    flipkit replaces the JAX trainer's `train_step`: the gradient's norm is computed between gradient
    and update. That step also relies on `compute_loss_and_updates` and on the order of the four
    parts of its state. When it goes: write the loop over `model.metrics` in a StatelessScope.
    """
    return model._update_metrics_variables(metrics, loss, x, y, y_pred, sample_weight)
