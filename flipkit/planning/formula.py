"""What a step needs by formula, for devices whose compiler needs them to be there: GPUs."""

import jax

from flipkit.errors import ConfigurationError
from flipkit.planning import liveness, program
from flipkit.planning.counting import flops_of
from flipkit.planning.topology import Topology


def estimate(run, index: int, topology: Topology) -> dict:
    """Returns what `flipkit.planning.program.Lowered.compile` does, and `flops`, without a compiler.

    Arguments are the bytes of weights, moments, averages and metrics in their layouts. Temporaries are
    those of `flipkit.planning.liveness` in the traced step of one device's rows, with the gradient. What
    devices send is the gradient's sum over them and, fully sharded, the weights, once forward and once
    backward. What a tensor parallel run sends between the parts of a block is left out.
    """
    names = [f"gpu:{i}" for i in range(topology.count)]
    spread = program.spread_over(run, names)
    parts = spread.parts if spread else (1, 1)
    rows, rest = divmod(run.phases[index].batch_size, parts[0])
    if rest:
        spread.get_data_layout((run.phases[index].batch_size,))  # raises
    with program.in_force(spread):
        state = program.enter(run, index, spread)
        sizes = [
            program.bytes_of(*each) for each in zip(state.variables, state.layouts, strict=True)
        ]
        weights = program.bytes_of(state.variables[0], [None] * len(state.variables[0]))
    with program.in_force(None):
        model, variables, _ = program.enter(run, index, None)
        shapes = [[jax.ShapeDtypeStruct(v.shape, v.dtype) for v in each] for each in variables]
        batch = {
            name: jax.ShapeDtypeStruct(*shape)
            for name, shape in program.batch_shapes(model, rows).items()
        }
        if model.microbatch is not None:
            model.microbatch = _share(model.microbatch, parts[0])
        traced = jax.jit(model.train_step).trace(tuple(shapes), (batch,)).jaxpr.jaxpr
    temporaries = liveness.temporaries(traced, in_place=True) / parts[1]
    traffic = _traffic(weights, topology.count, spread and spread.layout)
    arguments = sum(sizes)
    peak, limit = arguments + temporaries, topology.chip.device_memory
    return {
        "flops": flops_of(traced) * parts[0],
        "layout": spread.layout if spread else None,
        "mesh": parts,
        "fits": peak <= limit,
        "memory": {
            "arguments": arguments,
            "temporaries": temporaries,
            "peak": peak,
            "needed": peak,
        },
        "collectives": traffic,
        "xla_flops": None,
        "problem": None,
    }


def _traffic(weights, devices, layout):
    """Bytes of the collectives of a gradient, and of the weights where each device has a part of them."""

    def passed(count, rounds):
        sent = rounds * weights * (devices - 1) / devices
        return {"count": count, "bytes": count * weights, "sent": sent, "unknown": 0}

    if devices == 1:
        return {}
    if layout == "fully_sharded":
        return {"all-gather": passed(2, 2), "reduce-scatter": passed(1, 1)}
    return {"all-reduce": passed(1, 2)}


def _share(microbatch, devices):
    if microbatch % devices:
        raise ConfigurationError(
            f"Expected micro-batches with equally many rows on {devices} devices. Received: "
            f"microbatch={microbatch}"
        )
    return microbatch // devices
