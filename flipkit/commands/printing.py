"""How commands print: lines, and tables as wide as the terminal."""

import os
import sys

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 120  # columns of what is no terminal


def console() -> Console:
    """Where a command prints: as wide as the terminal or as COLUMNS says, WIDTH columns in a file."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if told else WIDTH, highlight=False)


def say(console: Console, text: str):
    """Prints a line as it is: never broken, so that a log has one line for each."""
    console.print(escape(text), soft_wrap=True)


def table(*columns, title, caption=None, numbers=False) -> Table:
    """A table that spends its width on what it says: no frame, two blanks between columns.

    Args:
        columns: titles; none for a table without a head.
        title: above it, as it is.
        caption: below it, as it is.
        numbers: whether all columns but the first hold numbers: to the right, never broken.
    """
    made = Table(
        *columns,
        title=escape(title),
        caption=caption and escape(caption),
        box=box.SIMPLE_HEAD if columns else None,
        show_header=bool(columns),
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0) if not columns else (0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for column in made.columns[1:] if numbers else ():
        column.justify, column.no_wrap = "right", True
    return made
