"""The names of a compiled program's instructions, read from the trace that jax.profiler wrote.

XLA gives its instructions names of its own, such as `multiply_add_fusion.61`, and events of a trace have
those. The trace also holds each program as XLA compiled it, in which an instruction has an `op_name`: the
scopes that were open when JAX traced it, such as `jit(train_step)/transpose(jvp(image))/block_00/mul`.
`jax.profiler.ProfileData` does not hand the programs out, so this module reads them from the file. It is a
protocol buffer, https://protobuf.dev/programming-guides/encoding: numbered fields, and messages in them.
"""

import dataclasses

# Numbers of fields: of an XSpace (tsl/profiler/protobuf/xplane.proto), ...
PLANES = 1
PLANE_NAME, EVENT_METADATA = 2, 4
MAP_VALUE = 2
PROGRAM_NAME, STATS = 2, 5
BYTES = 6
# ... and of an HloProto (xla/service/hlo.proto).
MODULE = 1
COMPUTATIONS = 3
INSTRUCTIONS = 2
INSTRUCTION_NAME, OPCODE, METADATA = 1, 2, 7
OP_NAME = 2

PROGRAMS_PLANE = b"/host:metadata"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
        kind: XLA's opcode, such as "fusion" or "dot".
        path: the `op_name`, scopes and JAX's operation; "" if XLA made the instruction by itself.
    """

    kind: str
    path: str


def programs(trace: bytes) -> dict[str, dict[str, Instruction]]:
    """`{program: {name of an instruction: Instruction}}` of every program in a trace.

    Args:
        trace: the content of a file `*.xplane.pb`.

    Returns:
        Programs by the trace's name, `jit_train_step(56)`: XLA's name and number.
    """
    found = {}
    for plane in _all(memoryview(trace), PLANES):
        if bytes(next(_all(plane, PLANE_NAME), b"")) != PROGRAMS_PLANE:
            continue
        for entry in _all(plane, EVENT_METADATA):
            for event in _all(entry, MAP_VALUE):
                name = _text(event, PROGRAM_NAME)
                for program in (p for stat in _all(event, STATS) for p in _all(stat, BYTES)):
                    found[name] = _instructions(program)
    return found


def _instructions(program):
    found = {}
    for module in _all(program, MODULE):
        for computation in _all(module, COMPUTATIONS):
            for instruction in _all(computation, INSTRUCTIONS):
                metadata = next(_all(instruction, METADATA), b"")
                found[_text(instruction, INSTRUCTION_NAME)] = Instruction(
                    _text(instruction, OPCODE), _text(metadata, OP_NAME)
                )
    return found


# Protocol buffers -----------------------------------------------------------------------------------


def _text(message, number) -> str:
    return bytes(next(_all(message, number), b"")).decode()


def _all(message, number):
    """The values of the fields of that number in a message."""
    return (value for found, value in fields(message) if found == number)


def fields(message):
    """Each field of a message as (number, value): an int, or the bytes of a text or an inner message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, form = key >> 3, key & 7
        if form == 0:
            value, place = _varint(message, place)
        else:
            if form == 2:
                size, place = _varint(message, place)
            else:
                size = {1: 8, 5: 4}[form]  # double and fixed64, float and fixed32
            value, place = message[place : place + size], place + size
        yield number, value


def _varint(message, place):
    """An int in groups of seven bits, the lowest first; the high bit says that another one follows."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return value, place
