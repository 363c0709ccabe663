"""What devices say to each other: the collectives in a compiled program's text."""

import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # the others end in their number of bits

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
    rf"= (?P<type>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<operands>[^)]*)\)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)\}?")
_WHILE = re.compile(r"\bwhile\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"= [su](?:32|64)\[\]\S* constant\((\d+)\)")


class Traffic(NamedTuple):
    """Collectives of one kind in a step.

    Attributes:
        count: how many run.
        bytes: of their results on one device.
        sent: bytes that a device sends, or receives, if devices pass parts on in a ring.
        unknown: how many run in a loop of unknown length, counted as if it ran once.
    """

    count: int
    bytes: float
    sent: float
    unknown: int


def collectives(text: str, devices: int) -> dict[str, Traffic]:
    """Returns the traffic of a program by kind of collective, from its text after XLA's passes.

    XLA repeats a collective that runs beside other work: each part of that work names it again. Such
    lines have one channel and one origin, and count once. A start and its done count once. A collective in
    a loop counts as often as the loop runs.

    Args:
        text: `compiled.as_text()`.
        devices: how many run the program; a collective that names no groups is one over all of them.
    """
    computations = _split(text)
    runs = _runs(computations)
    seen, found = set(), {}
    for name, lines in computations.items():
        times = runs.get(name, 0)
        if times == 0:
            continue
        for line in lines:
            match = _INSTRUCTION.search(line)
            if match is None:
                continue
            kind, arrays = match["kind"], _arrays(match["type"])
            origin = (
                kind,
                _channel(line),
                re.findall(r'op_name="[^"]*"| stack_frame_id=\d+', line),
            )
            origin = (*origin[:2], *origin[2], *arrays)
            if origin[1] is not None and origin in seen:
                continue
            seen.add(origin)
            held = _result_bytes(arrays, kind, bool(match["start"]))
            group = _group(line, devices)
            before = found.get(kind, Traffic(0, 0.0, 0.0, 0))
            known = 1 if times is None else times
            found[kind] = Traffic(
                before.count + known,
                before.bytes + known * held,
                before.sent + known * _sent(kind, held, group),
                before.unknown + (times is None),
            )
    return {kind: found[kind] for kind in KINDS if kind in found}


def _split(text):
    """{name of a computation: its lines}, in order; the last one is the program's entry."""
    found, entry, lines = {}, None, []
    for line in text.splitlines():
        if line and not line[0].isspace():
            if header := _COMPUTATION.match(line):
                lines = found.setdefault(header[1], [])
                entry = header[1] if line.startswith("ENTRY") else entry
        elif line.strip():
            lines.append(line)
    if entry is not None:
        found[entry] = found.pop(entry)
    return found


def _runs(computations):
    """{name: how often a computation runs in a step}; None where a loop's length is unknown."""
    if not computations:
        return {}
    runs: dict[str, int | None] = {}
    waiting: list[tuple[str, int | None]] = [([*computations][-1], 1)]
    while waiting:
        name, times = waiting.pop()
        if name not in computations or (name in runs and runs[name] is not None):
            continue
        runs[name] = times
        for line in computations[name]:
            loop = _WHILE.search(line)
            if loop:
                trips = _trips(line, computations.get(loop[1], ()))
                inside = None if trips is None or times is None else trips * times
                waiting.append((loop[2], inside))
                continue
            for called in _CALLED.findall(line):
                waiting += [(each.strip(" %"), times) for each in called.split(",")]
    return runs


def _trips(line, condition):
    """How often a loop runs: XLA's own note, or the one number that its condition compares with."""
    if told := _TRIPS.search(line):
        return int(told[1])
    bounds = [bound for line in condition for bound in _BOUND.findall(line)]
    below = any("direction=LT" in line for line in condition)
    return int(bounds[0]) if len(bounds) == 1 and below else None


def _channel(line):
    found = re.search(r"channel_id=(\d+)", line)
    return found and int(found[1])


def _arrays(text):
    """Bytes of the arrays in a type, in order."""
    found = []
    for dtype, dims in _ARRAY.findall(text):
        bits = _BITS.get(dtype) or int((re.search(r"^[a-z]+(\d+)", dtype) or [0, "8"])[1])
        size = 1
        for dim in dims.split(","):
            size *= int(dim or 1)
        found.append(size * bits / 8)
    return found


def _result_bytes(arrays, kind, start):
    """Bytes of a collective's results; the type of a start holds its operands too, and flags."""
    if not start or kind == "all-reduce":  # whose start has the type of its result
        return sum(arrays)
    if kind in ("all-gather", "collective-permute"):  # operands, results, flags of a few bytes
        arrays = [size for size in arrays if size > 4] or arrays
        return sum(arrays[len(arrays) // 2 :])
    return sum(arrays) / 2


def _group(line, devices):
    """How many devices take part in a collective with each other."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        group = 1
        for axis in re.findall(r"'(\w+)'", found[2]):
            group *= int(sizes.get(axis, 1))
        return group
    return devices


def _sent(kind, held, group):
    """Bytes that a device sends: a ring passes each part to all other members, one after another."""
    if group <= 1:
        return 0.0
    others = (group - 1) / group
    if kind == "all-reduce":
        return 2 * others * held  # scattered, then gathered
    if kind == "reduce-scatter":
        return (group - 1) * held  # the result is one part
    if kind in ("collective-permute", "collective-broadcast"):
        return held
    return others * held
