"""Runs in lines of text: progress, the summary at the end, metrics."""

import re

SHARE = re.compile(r"^top\d+$|^recall@\d+$|accuracy$|share$")
# Metric of training: its name in a line of progress, and over its curve.
ACCURACIES = {
    "image_to_text_accuracy": ("in-batch", "in-batch accuracy, image to text"),
    "accuracy": ("accuracy", "accuracy on the training batches"),
}


def line(row, steps) -> str:
    """A row of metrics as one line of progress."""
    parts = [f"step {row['step']:,}/{steps:,}", f"loss {row['loss']:.3f}"]
    parts += [f"{label} {row[name]:.1%}" for name, (label, _) in ACCURACIES.items() if name in row]
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
    """The metrics of evaluators, without counts: those whose names have a `/`."""
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
    """How many programs of the training step were compiled, {phase: count}: normally one each."""
    total, phases = sum(programs.values()), len(programs)
    text = f"Compiled {total} program{'s' * (total != 1)} of the training step for {phases} "
    text += f"phase{'s' * (phases != 1)}"
    more = [f"{count} for phase {phase}" for phase, count in programs.items() if count > 1]
    return f"{text}, {', '.join(more)}: each costs time." if more else f"{text}."


def is_share(metric) -> bool:
    """Whether a metric is a share, shown in percent: `top1`, `recall@5`, `..._accuracy`, `..._share`."""
    return SHARE.search(metric.rpartition("/")[2]) is not None


def shown(metric, value) -> str:
    """A metric as text: `12.34 %`, `0.2170`."""
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4f}"
