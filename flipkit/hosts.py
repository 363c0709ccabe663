"""Processes that train one model together, one a host: how they start, and what they tell each other."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable

import keras
import numpy as np

from flipkit.errors import ConfigurationError, FlipkitError

JAX = keras.backend.backend() == "jax"  # with another backend, one process trains
if JAX:
    import jax
    from jax.experimental import multihost_utils

# What JAX's, Gloo's and Orbax's errors say where another process is gone; their classes are of no use.
LOST = ("Gloo", "coordination service", "heartbeat", "Connection reset", "barrier")
BEAT = 30  # seconds without a sign of life after which a process counts as lost


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None):
    """Makes this process one of several that train together. Call it before JAX computes anything.

    Args:
        coordinator: "HOST:PORT" of process 0, which all processes can reach; None, with no other
            argument: JAX finds the processes itself (Cloud TPU, GKE, Slurm, Open MPI).
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ConfigurationError: the processes can't meet.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=BEAT,
            initialization_timeout=120,
        )
    except (ValueError, RuntimeError) as problem:
        first = str(problem).strip().partition("\n")[0]
        raise ConfigurationError(
            f"The processes of this run can't meet: {first} Received: coordinator={coordinator!r}, "
            f"hosts={processes}, host={process}"
        ) from problem
    # Layers of Keras's own draw the seed of their random numbers from it: it has to be the same in all.
    keras.utils.set_random_seed(0)


def count() -> int:
    """How many processes train together; 1 where none was joined."""
    return jax.process_count() if JAX and jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if JAX and jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes the run's records and reports to the user."""
    return index() == 0


@contextlib.contextmanager
def together():
    """On several hosts, an exception inside it ends this process at once, with a sentence and an exit code.

    JAX would wait at the end of the process for the others, and they wait for this one in the next step.
    """
    try:
        yield
    except BaseException as problem:
        if count() == 1:
            raise
        code = 130 if isinstance(problem, KeyboardInterrupt) else 1
        if isinstance(problem, FlipkitError):
            code, said = 2, str(problem)
        elif any(sign in str(problem) for sign in LOST):
            first = str(problem).strip().partition("\n")[0][:200]
            said = (
                f"Host {index()} lost another host of this run ({first}). The same command on all hosts "
                "resumes from the last checkpoint."
            )
        else:
            said = "".join(traceback.format_exception(problem))
        print(f"flipkit: {said}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def gather(value) -> list:
    """`value`, which JSON can hold, of each process, in their order. All of them have to call it."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text), "int32"))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def on_first(function: Callable[[], None]):
    """Calls `function` in the first process; the others wait. A FlipkitError of it is raised in all."""
    if count() == 1:
        function()
        return
    said = None
    if is_first():
        try:
            function()
        except FlipkitError as problem:
            said = str(problem)
    told, *_ = gather(said)
    if told is not None:
        raise ConfigurationError(told)


def whole(value) -> np.ndarray:
    """An array's value, parts on other hosts included. All processes have to call it."""
    if count() == 1 or value.is_fully_addressable or value.is_fully_replicated:
        return keras.ops.convert_to_numpy(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
