"""Tasks that take turns: one works at a time, so that a machine that slows down slows all of them."""

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 60  # seconds that a task which is given up may take to its next pause


class Stopped(BaseException):
    """Raised in a waiting task when the tasks are given up, such as after Ctrl-C.

    No `Exception`: what a task catches to go on must not catch it.
    """


def in_turns(tasks: list[Callable[[Callable[[float], None]], Any]]) -> list[Any]:
    """Runs tasks that share one machine slice by slice.

    Each task has a thread of its own. A task calls `pause(share)` with the share of its work that is
    done, from 0 to 1; the call returns when it is the task's turn again. All work at once until each
    has called it for the first time: what isn't measured, such as compiling, uses every core. From
    then on exactly one is awake. The turn goes to the task with the least share done, so that all
    tasks end together and each meets the same moods of the machine in proportion.

    Returns:
        What each task returned, in their order; an exception that ended it in its place.
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
                thread.join(0.2)  # a join without an end would keep Ctrl-C waiting
    finally:
        table.stop()
        for thread in threads:
            thread.join(PATIENCE)
    return table.results


class _Table:
    """Whose turn it is. `results` are the tasks'."""

    def __init__(self, count):
        self.results: list[Any] = [None] * count
        self._shares = dict.fromkeys(range(count), 0.0)  # of the tasks that still work
        self._preparing = set(range(count))  # those that have not paused yet
        self._changed = threading.Condition()
        self._turn, self._stopped = 0, False

    def work(self, number, task):
        """The life of a task's thread."""

        def pause(share):
            with self._changed:
                self._shares[number] = share
                self._preparing.discard(number)
                self._pass_on()
                self._wait(number)

        try:
            self.results[number] = task(pause)
        except BaseException as problem:  # handed to whoever asked for the results
            self.results[number] = problem
        finally:
            with self._changed:
                del self._shares[number]
                self._preparing.discard(number)
                self._pass_on()

    def stop(self):
        """Ends every task that waits for its turn."""
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
