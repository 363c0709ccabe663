"""Draws a plan: memory and time of a step against the mask ratio, as the paper's Table 1a argues."""

import pathlib

from flipkit import files
from flipkit.planning.units import unit_of
from flipkit.records.drawing import COLOURS, pyplot


def draw(rows, path, *, title) -> pathlib.Path | None:
    """Draws a bar for each row: memory on a device, with the limit, and seconds of a step.

    Args:
        rows: of `flipkit.planning.ahead.Ahead`.
        title: of the picture.

    Returns:
        `path`, or None without matplotlib.
    """
    plt = pyplot()
    if plt is None:
        return None
    rows = sorted(rows, key=lambda row: (row["mask_ratio"] or 0, row["microbatch"] or 0))
    timed = any(row["seconds"]["step"] for row in rows)
    figure, panels = plt.subplots(
        1, 1 + timed, figsize=(5.5 * (1 + timed), 4.6), squeeze=False, layout="constrained"
    )
    places, labels = range(len(rows)), [_label(row) for row in rows]
    _memory(panels[0, 0], rows)
    if timed:
        _seconds(panels[0, 1], rows)
    for axis in panels.flat:
        axis.set_xticks(places, labels)
        axis.set_xlabel("mask ratio, remat")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.margins(y=0.15)
    figure.suptitle(title, x=0.02, ha="left", size=11)
    with files.whole(path) as part:
        figure.savefig(part, dpi=130)
    plt.close(figure)
    return pathlib.Path(path)


def _label(row):
    mask = "" if row["mask_ratio"] is None else f"{row['mask_ratio']:g}"
    parts = [mask, row["remat"], row["microbatch"] and f"micro {row['microbatch']:,}"]
    return "\n".join(str(part) for part in parts if part)


def _memory(axis, rows):
    """Bars of arguments and what is above them; a row that does not fit is hatched, as far as is known."""
    limit = rows[0]["memory"]["limit"]
    unit = unit_of(row["memory"]["needed"] or row["memory"]["peak"] for row in rows)
    for place, row in enumerate(rows):
        memory = row["memory"]
        whole = memory["peak"] if row["fits"] else memory["needed"]
        if whole is None:
            axis.annotate(
                "does not fit", (place, 0), (0, 4), textcoords="offset points", ha="center"
            )
            continue
        hatch = {} if row["fits"] else {"hatch": "////", "alpha": 0.55, "edgecolor": "white"}
        held = min(memory["arguments"], whole)
        axis.bar(place, held / unit.size, 0.6, color=COLOURS[0], **hatch)
        axis.bar(
            place, (whole - held) / unit.size, 0.6, held / unit.size, color=COLOURS[4], **hatch
        )
        axis.annotate(
            unit.shown(whole),
            (place, whole / unit.size),
            (0, 3),
            textcoords="offset points",
            ha="center",
        )
    axis.set_ylabel(f"{unit.name} on a device")
    axis.set_title("memory: weights and moments below, activations above", size=10, loc="left")
    if limit is not None:
        axis.axhline(limit / unit.size, color=COLOURS[1], linestyle="--")
        axis.annotate(
            f"limit, {unit.shown(limit)}",
            (1, limit / unit.size),
            (0, 3),
            axis.get_yaxis_transform(),
            "offset points",
            ha="right",
            color=COLOURS[1],
        )


def _seconds(axis, rows):
    for place, row in enumerate(rows):
        spent = row["seconds"]
        if spent["step"] is None or not row["fits"]:
            continue
        axis.bar(place, spent["compute"], 0.6, color=COLOURS[2])
        axis.bar(place, spent["links"], 0.6, spent["compute"], color=COLOURS[5])
        axis.annotate(
            f"{spent['step']:.3g} s\n{row['pairs_per_second']:,.0f}/s",
            (place, spent["step"]),
            (0, 3),
            textcoords="offset points",
            ha="center",
            size=9,
        )
    axis.set_ylabel("seconds of a step")
    axis.set_title("time: products below, links above", size=10, loc="left")
