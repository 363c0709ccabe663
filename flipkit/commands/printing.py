"""Prints lines, and tables as wide as the terminal."""

import os
import sys

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 120  # columns where the output is no terminal


def console() -> Console:
    """Returns a console as wide as the terminal or COLUMNS; WIDTH columns in a file."""
    sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if sized else WIDTH, highlight=False)


def say(console: Console, text: str):
    """Prints a text as one line of any width, so that a log has one line for each."""
    console.print(escape(text), soft_wrap=True)


def table(*columns, title, caption=None, numbers=False) -> Table:
    """Returns a table without a frame, with two blanks between columns.

    Args:
        columns: titles; none for a table without a head.
        title: text above it, without markup.
        caption: text below it, without markup.
        numbers: whether all columns but the first hold numbers, which stand right and do not wrap.
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
