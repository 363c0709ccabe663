"""Runs as people look at them: tables, lines of progress, pictures."""

import itertools
import math
import pathlib

# Metric of training: its name in a line of progress, and over its curve.
ACCURACIES = {
    "image_to_text_accuracy": ("in-batch", "in-batch accuracy, image to text"),
    "accuracy": ("accuracy", "accuracy on the training batches"),
}


def line(row, steps) -> str:
    """A row of metrics as one line of progress."""
    parts = [f"step {row['step']:,}/{steps:,}", f"loss {row['loss']:.3f}"]
    parts += [f"{told} {row[name]:.1%}" for name, (told, _) in ACCURACIES.items() if name in row]
    parts.append(f"rate {row['learning_rate']:.2e}")
    if "pairs_per_second" in row:
        parts.append(f"{row['pairs_per_second']:,.0f} pairs/s")
        parts.append(f"waiting for data {row['data_wait']:.0%}")
    if row["rejected"]:
        parts.append(f"{row['rejected']} bad samples replaced")
    top = ("top1", "accuracy", "recall@1")  # the summary at the end has the others
    found = {n: v for n, v in evaluations(row).items() if n.rsplit("/", 1)[1] in top}
    parts += [f"{name} {value:.1%}" for name, value in found.items()]
    return "  ".join(parts)


def evaluations(row) -> dict[str, float]:
    """What evaluators found, without counts: the metrics whose names have a `/`."""
    found = {name: value for name, value in row.items() if "/" in name}
    return {
        n: v for n, v in found.items() if n.rsplit("/", 1)[1] not in ("count", "images", "texts")
    }


def summary(row) -> str:
    """The end of a run, in a few lines."""
    lines = [
        f"Done: {row['samples']:,} pairs in {row['seconds']:,.0f} s of training, "
        f"loss {row['loss']:.3f}, learning rate {row['learning_rate']:g} at the end."
    ]
    if row.get("rejected"):
        lines.append(f"{row['rejected']:,} bad samples were replaced; see rejects.jsonl.")
    lines += [f"  {name}: {value:.4g}" for name, value in evaluations(row).items()]
    return "\n".join(lines)


def compiled(programs) -> str:
    """How many programs of the training step were compiled, {phase: count}: one each, as a rule."""
    total, phases = sum(programs.values()), len(programs)
    told = f"Compiled {total} program{'s' * (total != 1)} of the training step for {phases} "
    told += f"phase{'s' * (phases != 1)}"
    more = [f"{count} for phase {phase}" for phase, count in programs.items() if count > 1]
    return f"{told}, {', '.join(more)}: each costs time." if more else f"{told}."


def draw_run(rows, path) -> pathlib.Path | None:
    """A run's loss, accuracy and evaluations over time, from its rows of metrics.

    Returns:
        `path`, or None where matplotlib is missing.
    """
    plt = pyplot()
    if plt is None:
        return None
    names = sorted({name for row in rows for name in evaluations(row)})
    figure, axes = plt.subplots(1, 3 if names else 2, figsize=(15 if names else 10, 4.2))
    _curve(axes[0], rows, "loss", "loss")
    for name, (_, title) in ACCURACIES.items():
        if any(name in row for row in rows):
            _curve(axes[1], rows, name, title)
    for name in names[:8]:
        _curve(axes[2], rows, name, "evaluations", label=name)
    for axis in axes:
        for a, b in itertools.pairwise(rows):
            if a["phase"] != b["phase"]:
                axis.axvline(a["seconds"], color="0.5", linestyle=":", label="next phase")
        axis.set_xlabel("seconds of training")
        axis.grid(alpha=0.3)
    if names:
        axes[2].legend(fontsize=8)
    return _save(figure, plt, pathlib.Path(path))


def is_share(metric) -> bool:
    """Whether a metric is a share, shown in percent, and no number of another kind."""
    return metric.rpartition("/")[2] not in ("mrr", "loss")


def shown(metric, value) -> str:
    """A metric as it is read: `12.34 %`, `0.2170`."""
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4f}"


def draw_masks(rows, patch_size, path, *, title, first=0) -> pathlib.Path | None:
    """What is kept of pictures: a row for each, a column for each step, the rest faded.

    Args:
        rows: (label, uint8 pixels (height, width, 3), bool (steps, patches)) of each row.
        patch_size: pixels per side of a patch.
        first: number of the first step.
    """
    plt = pyplot()
    if plt is None:
        return None
    steps = max(len(masks) for _, _, masks in rows)
    figure, axes = plt.subplots(
        len(rows), steps, figsize=(1.7 * steps + 1, 1.75 * len(rows) + 0.5), squeeze=False
    )
    for line, (label, pixels, masks) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label)
        height, width = (side // patch_size for side in pixels.shape[:2])
        for step, (axis, mask) in enumerate(zip(line, masks, strict=True)):
            mask = mask.reshape(height, 1, width, 1, 1).repeat(patch_size, 1).repeat(patch_size, 3)
            mask = mask.reshape(*pixels.shape[:2], 1)
            axis.imshow(mask * pixels + ~mask * (pixels // 6 + 40))
            axis.set_xticks([])
            axis.set_yticks([])
            if axis in axes[0]:
                axis.set_title(f"step {first + step:,}", fontsize=9)
    figure.suptitle(title)
    return _save(figure, plt, pathlib.Path(path))


def _curve(axis, rows, name, title, label=None):
    points = [(row["seconds"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    if points:
        x, y = zip(*points, strict=True)
        axis.plot(x, y, marker="o" if len(points) < 30 else None, markersize=4, label=label)
    axis.set_title(title)


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
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
