"""What ran when: the operations of a device, and the steps' waits, read from a trace of jax.profiler."""

import collections
import dataclasses
import pathlib

import jax

from flipkit.errors import ConfigurationError
from flipkit.profiling.programs import Instruction, programs

# Names of the annotations that `flipkit.profiling.steps` puts into a trace.
WINDOW, INPUT = "flipkit:steps", "flipkit:input"

# Operations that contain others, which have events of their own.
CONTAINERS = {"call", "conditional", "while"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One run of an instruction on a device.

    Attributes:
        name: XLA's name of the instruction, or of what the device did besides, such as "MemcpyH2D".
        begin, end: nanoseconds.
        instruction: `Instruction`; one without a path if the trace does not hold it.
    """

    name: str
    begin: float
    end: float
    instruction: Instruction


@dataclasses.dataclass(frozen=True)
class Trace:
    """What ran in the traced steps.

    Attributes:
        begin, end: of the steps, nanoseconds.
        devices: {device: its operations that ran at least partly between begin and end}.
        waits: (begin, end) of each time that the steps waited for a batch.
    """

    begin: float
    end: float
    devices: dict[str, list[Operation]]
    waits: list[tuple[float, float]]


def newest(folder) -> pathlib.Path:
    """The file of the latest trace that jax.profiler wrote below a folder."""
    files = pathlib.Path(folder).glob("plugins/profile/*/*.xplane.pb")
    return max(files, key=lambda path: path.stat().st_mtime)


def read(path) -> Trace:
    """Reads the trace in a file `*.xplane.pb`.

    On a CPU, events of instructions are on the lines of XLA's threads. On a GPU they are on a line for each
    stream of a plane for each device. On a TPU they are on the line "XLA Ops" of such a plane.

    Raises:
        ConfigurationError: the trace has no annotated steps, or no operation.
    """
    content = pathlib.Path(path).read_bytes()
    known = _Names(programs(content))
    spans, found = collections.defaultdict(list), collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_serialized_xspace(content).planes:
        on_device = plane.name.startswith("/device:")
        ends, begun = {}, []
        for line in plane.lines:
            if on_device and not line.name.startswith(("Stream", "XLA Ops")):
                continue  # the same time again: steps, whole programs
            for event in line.events:
                name = event.name
                if name in (WINDOW, INPUT):
                    spans[name].append((event.start_ns, event.end_ns))
                elif on_device or line.name.startswith("tf_XLA"):
                    begun.append((event, stats := dict(event.stats)))
                    if name.startswith("end: "):
                        ends[stats.get("_c")] = event.start_ns
        for event, stats in begun:
            if not on_device and "hlo_op" not in stats:
                continue  # the thread pool's own
            name, instruction = known.find(event.name, stats)
            # An event on a CPU ends when the operation has been handed to other threads. A later one,
            # "end: NAME" with the same number, marks when they were done.
            end = max(event.end_ns, ends.get(stats.get("_p"), 0))
            device = plane.name if on_device else f"CPU:{stats.get('device_ordinal', 0)}"
            if instruction.kind not in CONTAINERS:
                found[device].append(Operation(name, event.start_ns, end, instruction))
    if not spans[WINDOW] or not found:
        raise ConfigurationError(
            f"The trace has no {'operations' if spans[WINDOW] else 'steps'}. Received: {path}"
        )
    begin, end = spans[WINDOW][-1]
    devices = {
        device: [x for x in operations if x.end > begin and x.begin < end]
        for device, operations in found.items()
    }
    return Trace(begin, end, devices, spans[INPUT])


class _Names:
    """Finds the instruction of an event."""

    def __init__(self, known):
        self.known = known
        self.anywhere = {}  # of the largest program that has the name, the training step
        for instructions in sorted(known.values(), key=len):
            self.anywhere |= instructions

    def find(self, event: str, stats: dict) -> tuple[str, Instruction]:
        """The name of an event's instruction, and the instruction.

        Events on CPUs and GPUs have `hlo_op`, `hlo_module` and `program_id`. Those on TPUs may be called by
        the instruction's text: `%fusion.3 = f32[8,16] fusion(...)`.
        """
        name = str(stats.get("hlo_op") or event.partition(" = ")[0]).removeprefix("%")
        program = f"{stats.get('hlo_module')}({stats.get('program_id')})"
        instruction = self.known.get(program, self.anywhere).get(name)
        path = str(stats.get("tf_op", ""))  # what some devices store instead of the program
        return name, instruction or Instruction(name.rstrip("0123456789").rstrip("."), path)
