"""The memory of a traced program without a compiler: the most that is alive at once, by the formula."""

import math

from jax.extend import core

# Their results are their operands seen otherwise, or are computed where they are used.
_VIEWS = {
    "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "iota", "mesh_cast", "pvary",
    "reshape", "rev", "sharding_constraint", "squeeze", "stop_gradient", "transpose",
}  # fmt: skip


def temporaries(program: core.Jaxpr, in_place=False) -> float:
    """Returns the most bytes that the results of a program's equations take at once.

    A result lives from its equation to its last use, in the order of the trace. Views take nothing, and a
    result takes the place of an operand of its size that is not used again. XLA fuses more and also moves
    equations, so that a compiled program may need less, or more.

    Args:
        program: the trace.
        in_place: whether the program's results take the place of its inputs, as a train step's do.
    """
    last, results = {}, {v for v in program.outvars if isinstance(v, core.Var)}
    for place, equation in enumerate(program.eqns):
        last |= {v: place for v in equation.invars if isinstance(v, core.Var)}
    last |= dict.fromkeys(results, len(program.eqns))
    source, alive, now, most = {}, {}, 0.0, 0.0  # source: the value that a view is a view of
    for place, equation in enumerate(program.eqns):
        inputs = [source.get(v, v) for v in equation.invars if isinstance(v, core.Var)]
        if equation.primitive.name in _VIEWS and inputs:
            for out in equation.outvars:
                source[out] = inputs[0]
                last[inputs[0]] = max(last.get(inputs[0], 0), last.get(out, 0))
            continue
        inside = max(
            (temporaries(p) for v in equation.params.values() for p in _programs(v)), default=0.0
        )
        most = max(most, now + inside)
        for dead in {v for v in inputs if v in alive and last.get(v, 0) <= place}:
            now -= alive.pop(dead)
        for out in equation.outvars:
            if last.get(out, -1) > place and not (in_place and out in results):
                alive[out] = _bytes(out)
                now += alive[out]
        most = max(most, now)
    return most


def _bytes(variable):
    dtype = getattr(variable.aval, "dtype", None)
    return math.prod(getattr(variable.aval, "shape", ())) * getattr(dtype, "itemsize", 4)


def _programs(value):
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [p for item in value for p in _programs(item)] if isinstance(value, tuple) else []
