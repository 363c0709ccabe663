"""Every name of Keras that is not documented: one test a name, and no other file has one."""

import ast
import functools
import pathlib
import re
import tomllib

import keras
import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit import keras_inside

ROOT = pathlib.Path(__file__).parents[1]
FILES = [*(ROOT / "flipkit").rglob("*.py"), *(ROOT / "plugins").glob("*/flipkit_*/*.py")]
FILES += (ROOT / "plugins").glob("*/flipkit_*.py")


def test_an_initializer_waits_in_a_stateless_scope_and_can_be_replaced():
    layer = keras.layers.Dense(2)
    with keras.StatelessScope():
        layer.build((None, 3))
        assert keras_inside.initializer(layer.kernel) is layer.kernel_initializer
        keras_inside.set_initializer(layer.kernel, keras.initializers.Constant(7.0))
    assert keras_inside.initializer(layer.kernel) is None
    np.testing.assert_array_equal(layer.kernel, np.full((3, 2), 7.0))


def test_a_variable_gets_another_name():
    layer = keras.layers.Dense(2, name="dense")
    layer.build((None, 3))
    keras_inside.rename(layer.kernel, "weight")
    assert (layer.kernel.name, layer.kernel.path) == ("weight", "dense/weight")


def test_nothing_imports_tensorflow_where_it_is_kept_away(fresh):
    found = fresh(
        "import flipkit, sys, keras\n"
        "from flipkit import keras_inside\n"
        "with keras_inside.without_tensorflow():\n"
        "    keras.saving.serialize_keras_object(keras.layers.Dense(2))\n"
        "print('tensorflow' in sys.modules)"
    )
    assert found.split()[-1] == "False"


def test_a_copy_made_for_its_shapes_never_gets_values():
    from flipkit.encoders import shape_only

    copy = shape_only(flipkit.ViT(16, 8, dim=16, depth=1, heads=2))
    with keras.StatelessScope():
        pass  # whose end gives values to all variables that wait for theirs
    assert copy.weights
    assert all(variable._value is None for variable in copy.weights)


def test_a_variable_is_read_in_the_dtype_of_the_layer_that_runs_or_in_another():
    dtypes = []

    class Reading(keras.layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(shape=(1,), name="weight")

        def call(self, x):
            for dtype in (None, "float16"):
                with keras_inside.reading_in(dtype):
                    dtypes.append(str(self.weight.value.dtype))
            dtypes.append(str(self.weight.value.dtype))
            return x

    Reading(dtype="mixed_bfloat16")(np.ones((1, 1)))
    assert dtypes == ["float32", "float16", "bfloat16"]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of Keras's JAX variables")
def test_a_variable_without_a_value_gets_its_layout():
    layer = keras.layers.Dense(2)
    with keras_inside.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
        layer.build((None, 3))
    assert keras_inside.lay_out(layer.kernel) is None
    with flipkit.Distribution(mesh="1x1").scope():
        layout = keras_inside.lay_out(layer.kernel)
        assert layout.axes == (None, None)
        optimizer = keras.optimizers.SGD(momentum=0.9)
        with keras.StatelessScope(initialize_variables=False):
            optimizer.build([layer.kernel])
        (moment,) = (v for v in optimizer.variables if "momentum" in v.path)
        assert keras_inside.lay_out(moment) is layout


def test_all_layers_of_a_model_are_found(tiny):
    found = keras_inside.layers_of(tiny())
    assert {"attention", "mlp", "out"} <= {layer.name for layer in found}


def test_an_optimizers_place_of_a_variable():
    variables = [keras.Variable(np.zeros(i + 1, "float32")) for i in range(3)]
    optimizer = keras.optimizers.SGD()
    optimizer.build(variables)
    assert [keras_inside.index_of(optimizer, variable) for variable in variables] == [0, 1, 2]


def test_averages_are_in_the_order_of_the_variables():
    variables = [keras.Variable(np.zeros(i + 1, "float32")) for i in range(3)]
    optimizer = keras.optimizers.SGD(use_ema=True)
    optimizer.build(variables)
    found = keras_inside.averages_of(optimizer)
    assert [average.shape for average in found] == [(1,), (2,), (3,)]
    assert keras_inside.averages_of(keras.optimizers.SGD()) == []


def test_metrics_are_updated_from_given_values(tiny):
    model = tiny()
    model.compile("sgd")
    values = [v.value for v in model.metrics_variables]
    unit = ops.eye(4, 8)
    batch = {"image": np.zeros((4, 16, 16, 3), "uint8"), "text": np.zeros((4, 6), "int32")}
    y_pred = {"image": unit, "text": unit, "scale": model.scale}
    logs, values = keras_inside.update_metrics(model, values, 3.0, batch, None, y_pred, None)
    assert float(logs["loss"]) == 3
    assert float(logs["image_to_text_accuracy"]) == 1
    assert len(values) == len(model.metrics_variables)


def test_steps_that_run_together_are_fed_batch_by_batch(tiny):
    model, seen = tiny(), []
    model.compile("sgd", steps_per_execution=2)
    rows = {"image": np.zeros((20, 16, 16, 3), "uint8"), "text": np.zeros((20, 6), "int32")}
    check = model._check("fit")
    check.batch = lambda data: seen.append(keras.tree.flatten(data)[0].shape)
    model._check = lambda use: check
    model.fit(rows, batch_size=4, verbose=0)  # two, two and one
    assert seen == [(4, 16, 16, 3)] * 5
    assert model.meter.pairs == 20


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of Keras's JAX trainer")
def test_the_jax_trainers_step_is_what_ours_takes_the_place_of():
    import inspect

    asked = inspect.signature(keras.Model.compute_loss_and_updates).parameters
    ours = ["self", "trainable_variables", "non_trainable_variables", "metrics_variables"]
    assert list(asked)[:4] == ours
    assert {"training", "optimizer_variables"} <= asked.keys()
    assert list(inspect.signature(keras.Model.train_step).parameters) == ["self", "state", "data"]


def test_an_error_of_flipkits_is_not_wrapped_by_keras():
    class Refuses(keras.layers.Layer):
        def call(self, x):
            raise flipkit.ConfigurationError("too long")

    with pytest.raises(flipkit.ConfigurationError, match=r"^too long$"):
        Refuses()(np.zeros(3, "float32"))


@functools.cache
def own_names():
    """Private names that flipkit and its plugins define themselves."""
    found = {"_asdict", "_exit", "_replace"}  # documented, of a named tuple and of os
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                mine = isinstance(node, ast.Name) or ast.unparse(node.value) in ("self", "cls")
                found.add(getattr(node, "attr", getattr(node, "id", None)) if mine else None)
    return found


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_file_has_a_private_name_of_something_else(path):
    text = path.read_text(encoding="utf-8")
    if path == ROOT / "flipkit" / "keras_inside.py":
        assert "keras.src" in text
        return
    assert "keras.src" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            assert node.attr in own_names(), f"line {node.lineno}: {ast.unparse(node)}"


def test_later_releases_of_keras_are_not_taken_untested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (keras_bounds,) = (d for d in project["dependencies"] if d.startswith("keras>"))
    assert "<" in keras_bounds
