"""Progress bars for a person at a terminal."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def bars(totals: dict[str, int]) -> Iterator[dict[str, Callable[[int], None]]]:
    """A bar for each name, on stderr while it is a terminal: {name: function of how much is done}."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)

    def update(task, completed):
        shown.update(task, completed=completed)

    with shown:
        yield {
            name: functools.partial(update, shown.add_task(name, total=total))
            for name, total in totals.items()
        }
