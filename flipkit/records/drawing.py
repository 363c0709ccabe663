"""Runs as pictures: the curves of a run, and the patches that masks keep."""

import itertools
import math
import pathlib

from flipkit import files
from flipkit.records.messages import ACCURACIES, evaluations, is_share

# The metric that an evaluation is named by, the most common first.
BEST = ("top1", "accuracy", "recall@1", "mrr", "loss")

# Okabe and Ito's colours, distinct for the colour-blind; without their yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def drawn(names) -> list[str]:
    """The evaluations to draw: a metric of each evaluator, its first in BEST.

    An evaluator with several results, such as retrieval both ways, has one of each; the table at the end
    has the groups of classes.
    """
    chosen: dict[str, str] = {}
    for name in names:
        evaluator, _, rest = name.partition("/")
        group, _, metric = rest.rpartition("/")
        if metric in BEST and (not group or metric.startswith("recall")):
            key = f"{evaluator}/{group}"
            if key not in chosen or BEST.index(metric) < BEST.index(chosen[key].rpartition("/")[2]):
                chosen[key] = name
    return list(chosen.values())[: len(COLOURS)]


def draw_run(rows, path) -> pathlib.Path | None:
    """A run's loss, accuracy and evaluations over time, from its rows of metrics.

    Returns:
        `path`, or None where matplotlib is missing.
    """
    plt = pyplot()
    if plt is None:
        return None
    found = list(dict.fromkeys(name for row in rows for name in evaluations(row)))
    names = drawn(found) or found[: len(COLOURS)]  # those of a plugin's evaluator
    figure, axes = plt.subplots(
        1, 3 if names else 2, figsize=(15.5 if names else 10, 4.4), layout="constrained"
    )
    _curve(axes[0], rows, "loss", COLOURS[0], "loss")
    for name, (_, title) in ACCURACIES.items():
        if any(name in row for row in rows):
            _curve(axes[1], rows, name, COLOURS[0], title)
    labels = [_curve(axes[2], rows, n, COLOURS[i], "evaluations", n) for i, n in enumerate(names)]
    last = max((row["seconds"] for row in rows), default=0) or 1
    for axis in axes:
        for a, b in itertools.pairwise(rows):
            if a["phase"] != b["phase"]:
                axis.axvline(a["seconds"], color="0.5", linestyle=":")
                place = (a["seconds"], 0.01)
                axis.annotate(
                    f"phase {b['phase']}", place, (3, 0), axis.get_xaxis_transform(),
                    "offset points", fontsize=8, color="0.4",
                )  # fmt: skip
        axis.set_xlabel("seconds of training")
        axis.set_xlim(0, last)
        if axis.dataLim.y0 >= 0:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    if names:
        _spread([label for label in labels if label is not None], axes[2])
    left = [name for name in found if name not in names]
    if left:
        shown = ", ".join(left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        figure.supxlabel(f"Not drawn: {shown} (metrics.jsonl)", fontsize=8, color="0.4")
    return _save(figure, plt, pathlib.Path(path))


def draw_masks(rows, patch_size, path, *, title, first=0) -> pathlib.Path | None:
    """Draws kept patches of pictures: a row for each, the picture itself, then a column for each step.

    Dropped patches are hatched in two greys, which neither dark nor bright pictures have.

    Args:
        rows: (label, uint8 pixels (height, width, 3), bool (steps, patches)) of each row.
        patch_size: pixels per side of a patch.
        first: number of the first step.
    """
    plt = pyplot()
    if plt is None:
        return None
    from matplotlib.patches import Rectangle

    columns = 1 + max(len(masks) for _, _, masks in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(1.9 * columns + 0.6, 1.9 * len(rows) + 0.7),
        squeeze=False,
        layout="constrained",
    )
    for line, (label, pixels, masks) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label)
        width = pixels.shape[1] // patch_size
        for step, axis in enumerate(line, -1):
            axis.set_xticks([])
            axis.set_yticks([])
            if step >= len(masks):
                axis.set_visible(False)
                continue
            axis.imshow(pixels)
            if axis in axes[0]:
                axis.set_title("picture" if step < 0 else f"step {first + step:,}", fontsize=9)
            for place in () if step < 0 else (~masks[step]).nonzero()[0]:
                corner = (place % width * patch_size - 0.5, place // width * patch_size - 0.5)
                axis.add_patch(
                    Rectangle(
                        corner, patch_size, patch_size,
                        facecolor="0.8", edgecolor="0.5", hatch="//////", linewidth=0.6,
                    )
                )  # fmt: skip
    figure.suptitle(f"{title}; what is dropped is hatched", fontsize=11)
    return _save(figure, plt, pathlib.Path(path))


def _curve(axis, rows, name, colour, title, label=None):
    """Draws a metric over the seconds; returns (its last value, label, colour), None without a number."""
    share = is_share(name)
    known = [(row["seconds"], row[name]) for row in rows if name in row]
    points = [(x, 100 * y if share else y) for x, y in known if y is not None and math.isfinite(y)]
    lost = (
        ""
        if len(points) == len(known)
        else f"\nnot finite: {len(known) - len(points)} of {len(known)}"
    )
    axis.set_title(f"{title}, %{lost}" if share else f"{title}{lost}")
    if not points:
        return None
    x, y = zip(*points, strict=True)
    axis.plot(x, y, marker="o" if len(points) < 30 else None, markersize=4, color=colour)
    return y[-1], label, colour


def _spread(labels, axis):
    """Writes labels beside the ends of their curves, so far apart that none hides another."""
    low, high = axis.get_ylim()
    gap, top = (high - low) / 16, math.inf
    for value, label, colour in sorted(labels, reverse=True):
        top = min(value, top - gap)
        axis.annotate(
            label, (1, top), (5, 0), axis.get_yaxis_transform(), "offset points",
            va="center", fontsize=8, color=colour, annotation_clip=False,
        )  # fmt: skip


def pyplot():
    """`matplotlib.pyplot` without a screen, or None where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure, plt, path):
    with files.whole(path) as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)
    return path
