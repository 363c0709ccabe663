"""Time, length and cost of a run, from FLOPs, bytes over links, and what is known of the chips."""

from flipkit.planning.topology import Topology

UTILISATION = 0.4  # of the chips' peak FLOP/s: what large ViTs reach; docs/planning.md


def seconds(flops: float, sent: float, topology: Topology, utilisation=UTILISATION) -> dict:
    """Returns how long a step takes: `compute`, `links`, and `step`, the two one after another.

    `overlapped` is the longer of the two: a step in which all communication runs beside the products. A
    real step is between both. All are None for devices whose speed is unknown.

    Args:
        flops: of one device.
        sent: bytes that one device sends.
        topology: the chips.
        utilisation: share of their peak FLOP/s that the products reach.
    """
    if not topology.chip.flops:
        return dict.fromkeys(("compute", "links", "step", "overlapped"))
    compute = flops / (topology.chip.device_flops * utilisation)
    links = sent / topology.chip.device_links
    return {
        "compute": compute,
        "links": links,
        "step": compute + links,
        "overlapped": max(compute, links),
    }


def whole_run(run, batch_size, step, topology: Topology, price=None) -> dict:
    """Returns `pairs_per_second`, and `hours`, `chip_hours` and `cost` of all of a run's pairs.

    Args:
        run: `flipkit.Run`; all of its phases count as if they went at this speed.
        batch_size: pairs of a step.
        step: seconds, or None.
        topology: the chips.
        price: of a chip for an hour, in any currency; None leaves the cost out.
    """
    if step is None:
        return dict.fromkeys(("pairs_per_second", "hours", "chip_hours", "cost"))
    rate = batch_size / step
    hours = sum(phase.samples for phase in run.phases) / rate / 3_600
    chip_hours = hours * topology.chips
    return {
        "pairs_per_second": rate,
        "hours": hours,
        "chip_hours": chip_hours,
        "cost": None if price is None else price * chip_hours,
    }
