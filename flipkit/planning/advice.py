"""What to change where a step does not fit, from the rows that were measured."""

from flipkit.planning.units import unit_of


def advice(rows, largest=()) -> list[str]:
    """Returns sentences: for each row that does not fit, how much it needs, and what is known to fit.

    Args:
        rows: of `flipkit.planning.ahead.Ahead`.
        largest: for each of them the row of the largest batch that fits, or None; empty if no one asked.
    """
    found = []
    unit = unit_of(row["memory"]["needed"] or row["memory"]["peak"] for row in rows)
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault((row["mask_ratio"], row["microbatch"]), []).append(row)
    for group in groups.values():
        first = group[0]
        if not first["fits"]:
            own = dict(zip(map(id, rows), largest, strict=False)).get(id(first))
            found.append(f"{_needs(first, unit)} {_remedy(first, group, rows, own, unit)}")
    return found


def _needs(row, unit):
    settings = {
        "mask ratio": row["mask_ratio"],
        "remat": row["remat"],
        "microbatch": row["microbatch"],
        "batch": f"{row['batch_size']:,}",
    }
    what = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    what = f"{what[0].upper()}{what[1:]}"
    memory = row["memory"]
    if memory["needed"] is None:
        return f"{what} does not fit: {row['problem']}"
    return (
        f"{what} needs {unit.shown(memory['needed'])} of {unit.shown(memory['limit'])} {unit.name}."
    )


def _remedy(row, group, rows, largest, unit):
    fitting = [other for other in group if other["fits"]]
    if fitting:
        best = fitting[0]  # the weakest: rows begin with it
        return f"remat={best['remat']} fits, in {unit.shown(best['memory']['peak'])} {unit.name}."
    masked = [
        other
        for other in rows
        if other["fits"] and (other["mask_ratio"] or 0) > (row["mask_ratio"] or 0)
    ]
    options = []
    if masked:
        least = min(masked, key=lambda other: other["mask_ratio"])
        options.append(
            f"mask ratio {least['mask_ratio']:g} with remat={least['remat']}, which fits"
        )
    options += _sharded(group, unit)
    if row["microbatch"] is None:
        options.append("a microbatch, for one more forward pass")
    size = f", {largest['batch_size']:,} at most" if largest else " (--largest finds it)"
    options.append(f"a smaller batch{size}")
    return f"Try {'; or '.join(options)}."


def _sharded(group, unit):
    """What sharding the weights would leave, if a row of the group would fit with it."""
    told = [row for row in group if row["memory"]["needed"] and row["layout"] == "data_parallel"]
    if not told:
        return []
    row = min(told, key=lambda row: row["memory"]["needed"])
    memory, arguments = row["memory"], row["memory"]["arguments"]
    left = arguments / row["mesh"][0]
    if memory["needed"] - arguments + left > memory["limit"]:
        return []
    remat = f" with remat={row['remat']}" if row["remat"] else ""
    return [
        f"distribution=fully_sharded{remat}, which leaves about {unit.shown(left)} of the "
        f"{unit.shown(arguments)} {unit.name} of weights and moments on a device"
    ]
