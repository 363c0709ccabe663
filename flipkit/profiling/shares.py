"""Shares of time: of parts of the model, by the scopes in the paths of operations, and of operations."""

import collections
import re

from flipkit.profiling.trace import Trace

# {scope: part}, where `flipkit.models` opens them. A path may have further ones inside.
SCOPES = {
    "image": "image tower",
    "text": "text tower",
    "loss": "loss",
    "optimizer": "optimizer",
    "metrics": "metrics",
}
OTHER, INPUT, IDLE = "other", "input", "idle"
PARTS = (*SCOPES.values(), OTHER, INPUT, IDLE)
LOOP = ("while", "body", "closed_call")


def part_of(path: str, scopes: dict[str, str] = SCOPES) -> str:
    """The part that an operation belongs to: that of the outermost scope in its path that is known.

    Args:
        path: `jit(train_step)/transpose(jvp(image))/block_00/mul` is the image tower's.
        scopes: {scope: part}.
    """
    return next((scopes[word] for word in _words(path) if word in scopes), OTHER)


def is_backward(path: str) -> bool:
    """Whether an operation belongs to the backward pass: JAX transposes the forward pass to make it."""
    return "transpose(" in _first(path)


def label_of(path: str) -> str:
    """A path without JAX's transforms and loops, with * for numbers: blocks of a tower get one label."""
    words = [re.sub(r"\d+", "*", word) for word in _words(path)]
    kept = [word for i, word in enumerate(words) if i == 0 or word != words[i - 1]]
    return "/".join(kept)


def _words(path):
    """The scopes in a path, and its operation: `jit(f)/transpose(jvp(image))/mul` -> image, mul."""
    steps = (step for step in _first(path).split("/") if not step.startswith("jit("))
    words = (re.sub(r"^(?:\w*\()*|\)*$", "", step) for step in steps)
    return [word for word in words if word and word not in LOOP]


def _first(path):
    """The first of several paths: XLA joins those of collectives that it combines, `f/(a/psum:b/psum)`."""
    return path.partition(":")[0]


def shares(trace: Trace, scopes: dict[str, str] = SCOPES) -> dict:
    """Shares of the time of traced steps, means over the devices.

    Each moment belongs to the operation that ran then, or equally to all that did. A moment without one is
    "input" if the step was waiting for a batch, else "idle".

    Returns:
        `parts`, {part: share}, whose sum is 1; `backward`, {part: the share of backward passes in it};
        `operations`, the largest first, each with `name`, `kind`, `part`, `direction`, `share` and `count`,
        of all devices.
    """
    length = (trace.end - trace.begin) * len(trace.devices)
    parts = dict.fromkeys([*scopes.values(), *PARTS], 0.0)
    backward = dict.fromkeys(parts, 0.0)
    times, counts = collections.defaultdict(float), collections.Counter()
    for operations in trace.devices.values():
        spans = [(max(x.begin, trace.begin), min(x.end, trace.end)) for x in operations]
        spent, gaps = divided(spans, trace.begin, trace.end)
        for operation, time in zip(operations, spent, strict=True):
            path, kind = operation.instruction.path, operation.instruction.kind
            part, back = part_of(path, scopes), is_backward(path)
            label = label_of(path) or re.sub(r"[.\d]+$", "", operation.name)
            key = label, kind, part, "backward" if back else "forward"
            parts[part] += time / length
            backward[part] += time / length if back else 0.0
            times[key] += time / length
            counts[key] += 1
        waiting, idle = overlap(gaps, trace.waits), sum(end - begin for begin, end in gaps)
        parts[INPUT] += waiting / length
        parts[IDLE] += (idle - waiting) / length
    names = ("name", "kind", "part", "direction")
    return {
        "parts": parts,
        "backward": backward,
        "operations": [
            {**dict(zip(names, key, strict=True)), "share": share, "count": counts[key]}
            for key, share in sorted(times.items(), key=lambda item: -item[1])
        ],
    }


def divided(spans, begin, end):
    """The time of each span, where spans that overlap share it equally; and the gaps between spans.

    A clock runs at the speed of 1 / (spans that are open): a span's time is what passes on it.

    Args:
        spans: [(begin, end)] between `begin` and `end`.
    """
    changes = collections.Counter()
    for first, last in spans:
        changes[first] += 1
        changes[last] -= 1
    clock, gaps, running, time, before = {}, [], 0, 0.0, begin
    for moment in sorted({begin, end, *changes}):
        if running:
            time += (moment - before) / running
        elif moment > before:
            gaps.append((before, moment))
        clock[moment], before = time, moment
        running += changes[moment]
    return [clock[last] - clock[first] for first, last in spans], gaps


def overlap(gaps, waits) -> float:
    """The time that is in both of two lists of spans; spans of one list do not overlap."""
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in gaps for c, d in waits)
