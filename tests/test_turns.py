"""Turns: one task works at a time, all end together, and a machine that changes decides nothing."""

import threading

import pytest

from flipkit.study import turns


class Machine:
    """A machine on which a unit of work takes a second, and `slow` seconds after `change` of them."""

    def __init__(self, change=float("inf"), slow=1.0):
        self.now, self.change, self.slow, self.inside = 0.0, change, slow, 0

    def work(self, cost):
        self.inside += 1
        assert self.inside == 1, "two tasks work at once"
        before = self.now
        self.now += cost * (self.slow if self.now > self.change else 1.0)
        self.inside -= 1
        return self.now - before


def spent(machine, costs, slices=40):
    """Seconds that each task spends on `slices` slices of its own cost, taking turns."""

    def task(cost):
        def run(pause):
            pause(0.0)
            seconds = 0.0
            for done in range(1, slices + 1):
                seconds += machine.work(cost)
                pause(done / slices)
            return seconds

        return run

    return turns.in_turns([task(cost) for cost in costs])


def test_a_machine_that_slows_down_in_mid_run_slows_all_alike():
    even = spent(Machine(), [1.0, 1.0, 1.0])
    throttled = spent(Machine(change=50, slow=3.0), [1.0, 1.0, 1.0])
    assert max(even) == min(even)
    assert max(throttled) <= min(throttled) * 1.05
    assert min(throttled) > 1.5 * max(even)  # it was throttled
    # One after the other, the same machine is three times as slow for the last as for the first.
    machine = Machine(change=50, slow=3.0)
    alone = [spent(machine, [1.0])[0] for _ in range(3)]
    assert max(alone) > 2.5 * min(alone)


def test_the_turn_goes_to_who_has_the_least_share_done():
    order = []

    def task(name, slices):
        def run(pause):
            pause(0.0)
            for done in range(1, slices + 1):
                order.append(name)
                pause(done / slices)

        return run

    turns.in_turns([task("long", 6), task("short", 2)])
    assert order.index("short") == 1
    assert order[-3:].count("short") == 1  # both work to the end
    assert order.count("long") == 6


def test_tasks_prepare_at_once_and_then_take_turns():
    together = threading.Barrier(2, timeout=60)
    machine = Machine()

    def task(pause):
        together.wait()  # both are here at once
        pause(0.0)
        for done in range(1, 100):
            machine.work(1.0)
            pause(done / 100)
        return True

    def ends_early(pause):
        raise ValueError("no")

    first, second, problem = turns.in_turns([task, task, ends_early])
    assert first is second is True
    assert str(problem) == "no"


def test_what_a_task_returns_and_what_ends_it_are_handed_over():
    def fails(pause):
        pause(0.5)
        raise ValueError("no")

    def works(pause):
        for share in (0.2, 0.9, 1.0):
            pause(share)
        return threading.current_thread().name

    failure, name = turns.in_turns([fails, works])
    assert str(failure) == "no"
    assert name == "turn 1"
    assert turns.in_turns([]) == []


def test_ctrl_c_ends_the_tasks_that_wait(monkeypatch):
    ended = []

    def task(pause):
        share = 0.0
        try:
            while True:
                share += 1e-9
                pause(share)
        except turns.Stopped:
            ended.append(True)
            raise

    joins = []

    def interrupt(thread, seconds=None, join=threading.Thread.join):
        joins.append(thread)
        if len(joins) == 3:
            raise KeyboardInterrupt
        join(thread, seconds)

    monkeypatch.setattr(threading.Thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        turns.in_turns([task, task])
    assert ended == [True, True]
