"""The train step of a run's phase, for devices that need not be there: traced, lowered, compiled.

It is the program that `fit` compiles: `Trainable.train_step`, with the state donated and laid out again as
it came, under the same `flipkit.Distribution`. The variables have shapes and no values.
"""

import contextlib
import math
from typing import Any, NamedTuple

import jax  # traces, lowers and compiles without running
import keras

from flipkit import failures, keras_inside
from flipkit.checks import sides
from flipkit.distribution import Distribution
from flipkit.layers import kernels
from flipkit.models.inputs import Ids
from flipkit.planning.collectives import collectives
from flipkit.planning.counting import flops_of
from flipkit.training.phase import compile_phase


class Described(Distribution):
    """A distribution over devices of another machine.

    Keras puts a variable that has a value on the devices of its layout, which are not there. So a variable
    has no layout while a model is made. `placing` turns layouts on.
    """

    placing = False

    def get_variable_layout(self, variable):
        return super().get_variable_layout(variable) if self.placing else None


class State(NamedTuple):
    """A model that is ready for a phase, but for the values of its variables.

    Attributes:
        model: `flipkit.models.Trainable`.
        variables: those that a step changes, in Keras's four groups: trainable, non-trainable, the
            optimizer's, the metrics'.
        layouts: of each, in the same groups; None without a distribution.
    """

    model: Any
    variables: tuple[list, ...]
    layouts: tuple[list, ...]


def spread_over(run, devices) -> Described | None:
    """Returns the distribution of a run over devices; one that names none is data parallel on several."""
    if run.distribution is None and run.mesh is None and len(devices) == 1:
        return None
    return Described(run.distribution or "data_parallel", run.mesh, devices=devices)


@contextlib.contextmanager
def in_force(spread: Described | None):
    """Inside it Keras has this distribution, or none."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(spread)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


@contextlib.contextmanager
def _without_values():
    """Inside it variables that are made have shapes and no memory."""
    with keras_inside.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
        yield


def enter(run, index: int, spread: Described | None) -> State:
    """Enters a phase of a run as training does, without values; call it while `spread` is in force."""
    run = run.anew()
    model = run.model
    with _without_values():
        model.build()
    optimizer = compile_phase(run, index)
    if spread is not None:
        spread.placing = True
        for variable in (*model.trainable_variables, *model.non_trainable_variables):
            keras_inside.lay_out(variable)
    with _without_values():
        optimizer.build(model.trainable_variables)
        if not model.optimizer.built:  # one that scales the loss, around it
            model.optimizer.build(model.trainable_variables)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    layouts = tuple(
        [keras_inside.lay_out(v) if spread else None for v in each] for each in variables
    )
    return State(model, variables, layouts)


def batch_shapes(model, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns {name: (shape, dtype)} of a batch that a `flipkit.Feed` makes for a model."""
    size = sides(getattr(model, "image_size", None) or model.image.image_size)
    expected = model.expected_inputs(True)
    found: dict[str, tuple[tuple[int, ...], str]] = {"image": ((rows, *size, 3), "uint8")}
    if model.reads is not None:
        kind = expected[model.reads]
        if isinstance(kind, Ids):
            found[model.reads] = ((rows, kind.length) if kind.length else (rows,), "int32")
        else:
            found[model.reads] = found["image"]
    return found


class Lowered:
    """The step of a phase as a program that is ready to be compiled.

    Args:
        run: `flipkit.Run`, a description.
        index: of the phase.
        devices: JAX's device objects, live or described.

    Attributes:
        text: the program, as StableHLO.
        flops: of all devices together, as `flipkit.planning.flops` counts.
        arguments: bytes on one device of the state, without the batch.
        devices: how many run the program.
        platform: of the devices, "tpu" or "cpu".
        layout: name of the distribution, or None.
        mesh: parts of the batch, parts of each block.
    """

    def __init__(self, run, index: int, devices):
        spread = spread_over(run, devices)
        self.layout, self.mesh = (spread.layout, spread.parts) if spread else (None, (1, 1))
        self.devices, self.platform = len(devices), devices[0].platform
        # What lies on this process's own first device is not bound to it; `fit` binds nothing there either.
        own = devices[0] == jax.devices()[0]
        place = None if own else jax.sharding.SingleDeviceSharding(devices[0])

        def shape(variable, layout):
            sharding = place if layout is None else layout.backend_layout
            return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

        with in_force(spread), kernels.platform_scope(devices[0].platform):
            model, variables, layouts = enter(run, index, spread)
            state = jax.tree.map(shape, variables, layouts, is_leaf=_is_leaf)
            self.arguments = sum(bytes_of(*each) for each in zip(variables, layouts, strict=True))
            batch = {}
            for name, (sizes, dtype) in batch_shapes(model, run.phases[index].batch_size).items():
                laid = spread.get_data_layout(sizes).backend_layout if spread else place
                batch[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=laid)
            outs = (None, jax.tree.map(lambda s: s.sharding, state)) if spread else None
            # What Keras's JAX trainer does in `make_train_function`.
            step = jax.jit(model.train_step, donate_argnums=0, out_shardings=outs)
            traced = step.trace(state, (batch,))
            self.flops = flops_of(traced.jaxpr.jaxpr)
            self._lowered = traced.lower()
        self.text = self._lowered.as_text()

    def compile(self) -> dict:
        """Compiles the program; returns what it needs, as a dict for JSON.

        Returns:
            `fits`; `memory`, bytes on a device: `arguments`, `temporaries`, `peak`, or `needed` if it
            does not fit; `collectives`, {kind: `Traffic` as a dict}; `xla_flops`, of a device, with the
            bodies of loops counted once; `problem`, the compiler's message, or None.
        """
        try:
            compiled = self._lowered.compile()
        except jax.errors.JaxRuntimeError as problem:
            if not failures.is_memory(problem):
                raise
            known = failures.memory(problem)
            return {
                "fits": False,
                "memory": {"needed": known and known.needed},
                "collectives": {},
                "xla_flops": None,
                "problem": failures.first_line(problem),
            }
        used = compiled.memory_analysis()
        arguments, temporaries = used.argument_size_in_bytes, used.temp_size_in_bytes
        results = used.output_size_in_bytes - used.alias_size_in_bytes
        peak = arguments + temporaries + results
        if self.platform == "tpu":  # XLA's peak on a CPU leaves the temporaries out
            peak = used.peak_memory_in_bytes
        traffic = collectives(str(compiled.as_text()), self.devices)
        return {
            "fits": True,
            "memory": {"arguments": arguments, "temporaries": temporaries, "peak": peak},
            "collectives": {kind: found._asdict() for kind, found in traffic.items()},
            "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
            "problem": None,
        }


def _is_leaf(node):
    return node is None or not isinstance(node, (list, tuple))


def bytes_of(variables, layouts) -> float:
    """Returns the bytes on one device of variables in these layouts."""
    total = 0.0
    for variable, layout in zip(variables, layouts, strict=True):
        parts = 1
        if layout is not None:
            sizes = dict(zip(layout.device_mesh.axis_names, layout.device_mesh.shape, strict=True))
            parts = math.prod(sizes[axis] for axis in layout.axes if axis is not None)
        size = jax.numpy.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
        total += math.prod(variable.shape) * size / parts
    return total
