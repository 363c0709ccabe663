"""The memory of a traced program without a compiler: the most that is alive at once."""

import math
from typing import NamedTuple

from jax.extend import core

# Calls whose equations stand for themselves; a checkpoint is none, since XLA keeps its parts together.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
# Their results are their operand, seen otherwise.
_VIEWS = {
    "broadcast_in_dim", "copy", "expand_dims", "mesh_cast", "pvary", "reshape", "rev",
    "sharding_constraint", "squeeze", "stop_gradient", "transpose",
}  # fmt: skip
# Not element by element, though the shapes may look like it.
_MIXING = {"dot_general", "sort", "cumsum", "cummax", "cummin", "cumprod", "cumlogsumexp"}
_FUSED = 4  # operands that are computed with: from more than that, a result is kept


class _Step(NamedTuple):
    """An equation: its kind, the values that it reads, {value that it makes: bytes}, bytes inside it."""

    fused: bool
    reads: list[int]
    makes: dict[int, float]
    inside: float


def temporaries(program: core.Jaxpr, in_place=False) -> float:
    """Returns the most bytes that the results of a program's equations take at once.

    A result lives from its equation to its last use, in the order of the trace. Elementwise results and
    views take nothing: they are computed again from their operands, which live until then, as in XLA's
    fusions. XLA also moves equations, and computes more again where memory is short.

    Args:
        program: the trace.
        in_place: whether the program's results take the place of its inputs, as a train step's do.
    """
    steps, results = _flattened(program)
    sources: dict[
        int, frozenset[int]
    ] = {}  # of a fused result: the kept values that it is made from
    size: dict[int, float] = {}
    last = {} if in_place else dict.fromkeys(results, len(steps))
    written = frozenset(last)
    for place, step in enumerate(steps):
        read = frozenset().union(*(sources.get(value, frozenset({value})) for value in step.reads))
        for value in read:
            last[value] = max(last.get(value, -1), place)
        for value, held in step.makes.items():
            if step.fused and len(read) <= _FUSED and value not in written:
                sources[value] = read
            else:
                size[value] = held
    ends: dict[int, list[int]] = {}
    for value in size:
        ends.setdefault(last.get(value, -1), []).append(value)
    now = most = 0.0
    for place, step in enumerate(steps):
        made = sum(
            size[value] for value in step.makes if value in size and last.get(value, -1) > place
        )
        freed = sum(size[value] for value in ends.get(place, ()))
        reused = min(made, freed) if step.fused else 0.0  # elementwise, in place
        most = max(most, now + max(step.inside, made) - reused)
        now += made - freed
    return most


def _flattened(program):
    """The steps of a program, calls resolved, and the numbers of its results."""
    steps: list[_Step] = []
    numbers = iter(range(1 << 62))

    def run(program, env):
        def number(variable):
            if not isinstance(variable, core.Var):
                return None
            if variable not in env:
                env[variable] = next(numbers)  # an input, or a constant
            return env[variable]

        for equation in program.eqns:
            name, inside = equation.primitive.name, _programs(equation.params)
            reads = [number(variable) for variable in equation.invars]
            if name in _CALLS and len(inside) == 1:
                own = dict(zip(inside[0].invars, reads, strict=False))
                run(inside[0], own)
                for variable, result in zip(equation.outvars, inside[0].outvars, strict=True):
                    env[variable] = own.get(result) if isinstance(result, core.Var) else None
                continue
            makes = {next(numbers): _bytes(variable) for variable in equation.outvars}
            env |= zip(equation.outvars, makes, strict=True)
            most = max(map(temporaries, inside), default=0.0)
            known = [value for value in reads if value is not None]
            steps.append(_Step(_is_fused(equation, inside), known, makes, most))
        return [number(variable) for variable in program.outvars]

    results = run(program, {})
    return steps, [value for value in results if value is not None]


def _is_fused(equation, inside):
    """Whether an equation is a view of its operand, or computes element by element."""
    name = equation.primitive.name
    if name in _VIEWS or name == "iota":
        return True
    if inside or name in _MIXING or len(equation.outvars) != 1:
        return False
    shape = getattr(equation.outvars[0].aval, "shape", None)
    return all(getattr(v.aval, "shape", ()) in ((), shape) for v in equation.invars)


def _bytes(variable) -> float:
    dtype = getattr(variable.aval, "dtype", None)
    return 1.0 * math.prod(getattr(variable.aval, "shape", ())) * getattr(dtype, "itemsize", 4)


def _programs(value):
    """The programs in an equation's parameters."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, dict):
        return [p for item in value.values() for p in _programs(item)]
    return [p for item in value for p in _programs(item)] if isinstance(value, tuple) else []
