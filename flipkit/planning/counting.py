"""Counts the FLOPs of a traced program."""

import math

import jax  # traces programs without running them, which Keras cannot
from jax.extend import core

from flipkit.errors import ConfigurationError


def flops(function, *inputs) -> int:
    """Counts the FLOPs of matrix products and convolutions in `function(*inputs)`; a multiply-add is two.

    It traces the function without running it. The count includes a backward pass, blocks that `remat`
    computes again, each iteration of a scan and the costliest branch of a condition. It leaves out sums,
    norms, softmax and activations, as usual.

    Args:
        function: takes and returns arrays.
        inputs: `jax.ShapeDtypeStruct`, in any nesting, or arrays.

    Raises:
        ConfigurationError: a product is inside a loop whose number of iterations no shape determines.
    """
    return flops_of(jax.make_jaxpr(function)(*inputs).jaxpr)


def flops_of(program) -> int:
    """Counts the FLOPs of a traced program, a jaxpr, as `flops` does: those of all devices together."""
    return sum(_flops_of_equation(equation) for equation in program.eqns)


def _flops_of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right = (variable.aval.shape for variable in equation.invars[:2])
        outputs = equation.outvars[0].aval.size
        if name == "dot_general":
            [contracted, _], _ = params["dimension_numbers"]
            return 2 * outputs * math.prod(left[axis] for axis in contracted)
        features = right[params["dimension_numbers"].rhs_spec[0]]
        zeros = math.prod(params["lhs_dilation"])  # in the gradient of a convolution with strides
        return 2 * outputs * math.prod(right) // features // zeros
    counts = [flops_of(program) for value in params.values() for program in _programs(value)]
    if name == "cond":
        return max(counts)
    if name == "shard_map":  # its program is that of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(
            counts
        )
    if name == "scan":
        return params["length"] * sum(counts)
    if name in ("while", "pallas_call") and any(counts):
        raise ConfigurationError(
            f"Can't count the matrix products in a {name!r}: no shape determines its number of "
            "iterations. Those in a scan, and in a loop in Python, can be counted."
        )
    return sum(counts)


def _programs(value):
    """Returns the programs in a parameter of an equation."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [p for item in value for p in _programs(item)] if isinstance(value, tuple) else []
