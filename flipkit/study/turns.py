"""Runs tasks in turns, one at a time, so that a machine that slows down slows all of them."""

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 60  # seconds that a stopped task may take until its next pause


class Stopped(BaseException):
    """Raised in a waiting task when the tasks are stopped, such as after Ctrl-C.

    It is no `Exception`, so that a task's `except Exception` does not catch it.
    """


def in_turns(tasks: list[Callable[[Callable[[float], None]], Any]]) -> list[Any]:
    """Runs tasks in turns on one machine.

    Each task has its own thread. A task calls `pause(share)` with the share of its work that is done,
    from 0 to 1; the call returns when it is the task's turn again. All tasks run at once until each
    has called `pause` for the first time, so that unmeasured work, such as compiling, uses every core.
    From then on exactly one runs. The turn goes to the task with the least share done, so that all
    tasks end together and changes of the machine's speed affect them in proportion.

    Returns:
        What each task returned, in their order, or the exception that ended it.
    """
    table = _Table(len(tasks))
    threads = [
        threading.Thread(target=table.work, args=(number, task), daemon=True, name=f"turn {number}")
        for number, task in enumerate(tasks)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # a join without a timeout would block Ctrl-C
    finally:
        table.stop()
        for thread in threads:
            thread.join(PATIENCE)
    return table.results


class _Table:
    """Passes the turn between tasks, and stores their results."""

    def __init__(self, count):
        self.results: list[Any] = [None] * count
        self._shares = dict.fromkeys(range(count), 0.0)  # of the tasks that still run
        self._preparing = set(range(count))  # those that have not paused yet
        self._changed = threading.Condition()
        self._turn, self._stopped = 0, False

    def work(self, number, task):
        """Runs a task in its thread; stores its result or exception."""

        def pause(share):
            with self._changed:
                self._shares[number] = share
                self._preparing.discard(number)
                self._pass_on()
                self._wait(number)

        try:
            self.results[number] = task(pause)
        except BaseException as problem:  # the caller of `in_turns` gets it as a result
            self.results[number] = problem
        finally:
            with self._changed:
                del self._shares[number]
                self._preparing.discard(number)
                self._pass_on()

    def stop(self):
        """Raises Stopped in every task that waits for its turn."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _pass_on(self):
        if self._shares:
            self._turn = min(self._shares, key=lambda number: (self._shares[number], number))
        self._changed.notify_all()

    def _wait(self, number):
        self._changed.wait_for(
            lambda: self._stopped or (self._turn == number and not self._preparing)
        )
        if self._stopped:
            raise Stopped
