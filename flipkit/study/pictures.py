"""Draws studies: curves over the budget spent, and each model's answers on test pictures."""

import math
import pathlib

import numpy as np

from flipkit import files, preprocessing
from flipkit.records import drawing, messages

# Okabe and Ito's eight colours, distinct in any colour vision; more curves have dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
STYLES = ("-", "--", ":", "-.")
AXES = {"flops": "training FLOPs", "samples": "training pairs", "seconds": "seconds of training"}


def draw_study(
    rows, metric, budget, path, *, title, chance=None, baseline=None, leads=()
) -> pathlib.Path | None:
    """Draws a study's mean curves over the budget spent, as in the paper's Figure 1.

    With several seeds a second panel has a dot for the end of each run.

    Args:
        rows: `flipkit.study.ranking.Row`s from the best down.
        metric: a name in their results' evaluations, such as "zero_shot/top1".
        budget: the x axis: "seconds", "samples" or "flops".
        chance: the metric of a guess, drawn as a dotted line.
        baseline: the row that the others are compared with, or None.
        leads: `flipkit.study.ranking.Lead`s, marked at the level where the baseline ends.

    Returns:
        `path`, or None without matplotlib.
    """
    plt = drawing.pyplot()
    if plt is None:
        return None
    factor, unit = (100, ", %") if messages.is_share(metric) else (1, "")
    rows = [row for row in rows if row.curve(budget, metric)]
    several = any(len(row.values) > 1 for row in rows)
    figure, panels = plt.subplots(
        1,
        2 if several else 1,
        figsize=(12.5 if several else 8.5, 5.2),
        width_ratios=(1.9, 1) if several else None,
        squeeze=False,
        layout="constrained",
    )
    axis, marked = panels[0, 0], []
    for place, row in enumerate(rows):
        look = {"color": COLOURS[place % 8], "linestyle": STYLES[place // 8 % 4]}
        if several:
            for result in row.results:
                if not result.diverged:
                    points = [(e[budget], factor * e[metric]) for e in result.evaluations]
                    axis.plot(*zip(*points, strict=True), **look, linewidth=0.7, alpha=0.35)
        spent, reached = zip(*row.curve(budget, metric), strict=True)
        axis.plot(
            (0, *spent), (0, *(factor * v for v in reached)), **look, marker="o", ms=3.5, lw=2
        )
        marked.append((spent[-1], factor * reached[-1], row.variant.label, look["color"]))
    axis.set_xlim(0, 1.02 * axis.dataLim.x1)  # of all curves, those of single seeds included
    axis.set_ylim(0, 1.08 * axis.dataLim.y1 or 1)
    axis.set_xlabel(AXES[budget])
    axis.set_ylabel(f"{metric}{unit}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    _label_ends(axis, marked)
    if chance is not None:
        axis.axhline(factor * chance, color="0.5", linestyle=":")
        axis.annotate(
            "chance",
            (1, factor * chance),
            (-2, 3),
            axis.get_yaxis_transform(),
            "offset points",
            ha="right",
            color="0.4",
            size=8,
        )
    if baseline is not None and leads:
        colours = {row.variant: COLOURS[place % 8] for place, row in enumerate(rows)}
        _mark_leads(axis, baseline, leads, metric, budget, factor, colours)
    if several:
        _draw_ends(panels[0, 1], rows, metric, factor, unit)
    figure.suptitle(title, x=0.02, ha="left")
    with files.whole(path) as part:
        figure.savefig(part, dpi=130)
    plt.close(figure)
    return pathlib.Path(path)


def _label_ends(axis, marked):
    """Labels each curve at its end, right of the axis, and moves labels apart that would overlap."""
    bottom, top = axis.get_ylim()
    least = 0.05 * (top - bottom)
    places = []
    for x, y, label, colour in sorted(marked, key=lambda mark: mark[1]):
        place = max(y, places[-1] + least) if places else y
        places.append(place)
        axis.annotate(
            label,
            (x, y),
            (1.015, (place - bottom) / (top - bottom)),
            textcoords="axes fraction",
            color=colour,
            va="center",
            size=10,
            weight="bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.8},
        )


def _mark_leads(axis, baseline, leads, metric, budget, factor, colours):
    """Marks where each variant passes the baseline's final metric, and how many times sooner that is."""
    end, level = baseline.curve(budget, metric)[-1][0], factor * baseline.mean
    there = [lead for lead in leads if lead.sooner and lead.sooner > 1]
    if not there:
        return
    there.sort(key=lambda lead: lead.spent[budget])
    axis.annotate(
        "",
        (there[0].spent[budget], level),
        (end, level),
        arrowprops={"arrowstyle": "<->", "color": "0.3", "linewidth": 1.3},
    )
    # Left of the first lead and above the baseline's end there is no mean curve.
    fits = there[0].spent[budget] > 0.25 * axis.get_xlim()[1]
    for line, lead in enumerate(there):
        colour, start = colours[lead.variant], lead.spent[budget]
        axis.plot([start] * 2, [0, level], color=colour, linestyle=":", linewidth=1.2)
        axis.annotate(
            f"{lead.sooner:.1f}x sooner",
            (there[0].spent[budget], level),
            (-6 if fits else 6, 6 + 15 * (len(there) - 1 - line)),
            textcoords="offset points",
            ha="right" if fits else "left",
            size=10.5,
            color=colour,
            weight="bold",
            bbox={"color": "white", "alpha": 0.75, "pad": 1, "linewidth": 0},
        )


def _draw_ends(axis, rows, metric, factor, unit):
    """Draws a line for each variant: a dot for the end of each seed, a bar for their mean."""
    for place, row in enumerate(rows):
        colour = COLOURS[place % 8]
        ends = [factor * value for value in row.values]
        axis.plot(ends, [place] * len(ends), "o", color=colour, ms=6, alpha=0.7)
        axis.plot([factor * row.mean] * 2, [place - 0.12, place + 0.12], color=colour, lw=2.5)
    axis.set_yticks([])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    for place, row in enumerate(rows):
        axis.annotate(
            row.variant.label,
            (0, place),
            (4, 18),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=COLOURS[place % 8],
            size=9,
        )
    axis.set_xlim(0, 1.08 * max(factor * max(row.values) for row in rows) or 1)
    axis.set_xlabel(f"at the end, each seed{unit}; bar: mean")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)


def draw_answers(columns, data, path, *, title) -> pathlib.Path | None:
    """Draws a sheet of test pictures, each with its class name and the answer of each model.

    Args:
        columns: {label of a model: its answers, as `flipkit.study.answers.read` returns them}, all on
            the same pictures.
        data: the dataset that the answers' indices point into.

    Returns:
        `path`, or None without matplotlib or answers.
    """
    plt = drawing.pyplot()
    columns = {label: found for label, found in columns.items() if found}
    if plt is None or not columns:
        return None
    pictures = next(iter(columns.values()))
    across = 4
    down = math.ceil(len(pictures) / across)
    lines = len(columns) + 1
    figure, axes = plt.subplots(
        down, across, figsize=(3.3 * across, (1.7 + 0.2 * lines) * down + 0.9), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (axis, picture) in enumerate(zip(axes.flat, pictures, strict=False)):
        axis.imshow(np.asarray(preprocessing.decode(data[picture["index"]]["image"])))
        texts = [(_short(picture["truth"]), "0.1", "bold")]
        for number, found in enumerate(columns.values()):
            right = found[place]["answer"] == picture["truth"]
            answer = f"{'✓' if right else '✗'} {_short(found[place]['answer'])}"
            texts.append((answer, COLOURS[number % 8], "bold" if right else "normal"))
        for line, (text, colour, weight) in enumerate(texts):
            axis.annotate(
                text,
                (0.5, 0),
                (0, -10 - 12 * line),
                "axes fraction",
                "offset points",
                ha="center",
                va="center",
                color=colour,
                size=7.5,
                weight=weight,
            )
    figure.suptitle(title, x=0.02, ha="left")
    offset = 0.02
    for number, label in enumerate(columns):
        text = figure.text(offset, 0.012, f"■ {label}", color=COLOURS[number % 8], size=10)
        offset += 0.03 + 0.0085 * len(text.get_text())
    figure.subplots_adjust(
        0.01, 0.03 + 0.2 * lines / (figure.get_figheight()), 0.99, 0.94, 0.05, 0.22 * lines
    )
    with files.whole(path) as part:
        figure.savefig(part, dpi=110)
    plt.close(figure)
    return pathlib.Path(path)


def _short(name, most=34):
    return name if len(name) <= most else name[: most - 1] + "…"
