"""Where in a run one is."""

import dataclasses
import itertools
import types

import pytest

from flipkit import position
from flipkit.position import Position

PHASES = [types.SimpleNamespace(steps=s, batch_size=b) for s, b in ((3, 8), (2, 16), (4, 4))]


def test_every_step_of_a_run_has_its_place():
    found = [position.at(PHASES, step) for step in range(10)]
    assert [p.step for p in found] == [*range(10)]
    # The end of a phase belongs to that phase.
    assert [p.phase for p in found] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [p.step_in_phase for p in found] == [0, 1, 2, 3, 1, 2, 1, 2, 3, 4]
    assert [p.sample for p in found] == [0, 8, 16, 24, 40, 56, 60, 64, 68, 72]


def test_a_phase_begins_where_the_one_before_ends():
    ends = itertools.accumulate(phase.steps for phase in PHASES)
    for index, step in enumerate([0, *ends][:3]):
        begin = position.begin(PHASES, index)
        assert begin == Position(position.at(PHASES, step).sample, step, index, 0)


def test_it_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        position.at(PHASES, 1).step = 2
