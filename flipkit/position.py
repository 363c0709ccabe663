"""A place in a run, which loop, journal, checkpoints, study and feed share."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Position:
    """A place between two steps of a run.

    Attributes:
        sample: samples that the earlier steps have used.
        step: steps before it, of all phases.
        phase: index of the phase of the last of these steps; 0 at the start.
        step_in_phase: steps before it in that phase.
    """

    sample: int
    step: int
    phase: int
    step_in_phase: int


def at(phases: Sequence[Any], step: int) -> Position:
    """The position after `step` steps. Between two phases it is the first one's end.

    Args:
        phases: of a run: each has `steps` and `batch_size`.
        step: from 0 to the sum of the phases' steps.
    """
    sample, left = 0, step
    for index, phase in enumerate(phases):
        if left <= phase.steps or index == len(phases) - 1:
            return Position(sample + left * phase.batch_size, step, index, left)
        sample, left = sample + phase.steps * phase.batch_size, left - phase.steps
    raise ValueError("a run has at least one phase")


def begin(phases: Sequence[Any], index: int) -> Position:
    """The position before the first step of phase `index`."""
    before = phases[:index]
    samples = sum(phase.steps * phase.batch_size for phase in before)
    return Position(samples, sum(phase.steps for phase in before), index, 0)
