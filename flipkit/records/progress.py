"""Progress bars for a person at a terminal."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class _Bars(Progress):
    """Rich before 15 ends a display that is disabled with an empty line."""

    def stop(self):
        if not self.disable:
            super().stop()


def display(enabled=True) -> Progress:
    """The place where bars are drawn: stderr, if it is a terminal and they are `enabled`."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return _Bars(
        *columns,
        console=console,
        disable=not (enabled and console.is_terminal),
        transient=True,
        redirect_stdout=False,  # print to stdout, whether stderr is a terminal or not
    )


@contextlib.contextmanager
def bars(totals: dict[str, int]) -> Iterator[dict[str, Callable[[int], None]]]:
    """A bar for each name: {name: function of how much is done}."""
    shown = display()

    def update(task, completed):
        shown.update(task, completed=completed)

    with shown:
        yield {
            name: functools.partial(update, shown.add_task(name, total=total))
            for name, total in totals.items()
        }
