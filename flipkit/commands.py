"""What the commands share: how they start, answer a mistaken flag, and print."""

import difflib
import os
import sys

from absl import app, flags, logging
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flipkit.process import skip_absent_tpu

WIDTH = 120  # columns of what is no terminal


def start(main, *own, settings=True):
    """Runs a command and ends the process with its exit code; 2 for a mistaken flag.

    Args:
        main: called with the command line without its flags; returns the exit code.
        own: the command's flags, as absl's DEFINE functions return them.
        settings: whether the command takes name=value.
    """
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow name=value
    logging.set_verbosity(logging.WARNING)
    skip_absent_tpu()
    names = [flag.name for flag in own]
    app.run(main, flags_parser=lambda arguments: parsed(arguments, names, settings))


def parsed(arguments, names=(), settings=True) -> list[str]:
    """The command line without its flags, which are set; ends the process for one that can't be.

    Args:
        arguments: the command line, the program first.
        names: the command's own flags.
        settings: whether the command takes name=value.
    """
    if {"--help", "-h"} & {*arguments[1:]}:
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as problem:
        name = getattr(problem, "flagname", None)
        told = str(problem) if name is None else unknown_flag(name, arguments, names, settings)
        print(f"flipkit: {told}", file=sys.stderr)
        sys.exit(2)


def unknown_flag(name, arguments, names=(), settings=True) -> str:
    """What to say of a flag that a command has not: the nearest one, or how a setting is written."""
    told = f"Unknown flag --{name}."
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"{told} Did you mean --{close[0]}?"
    if settings:
        return f"{told} Settings are written name=value: {name}={_value(name, arguments)}"
    return f"{told} Known: {', '.join(f'--{flag}' for flag in names) or 'none'}."


def _value(name, arguments):
    """What the command line gives the flag: `--name=value`, `--name value`."""
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if argument.startswith("-") and flag.lstrip("-") == name:
            after = arguments[place + 1 : place + 2]
            if not equals and after and "=" not in after[0] and not after[0].startswith("--"):
                return after[0]
            return value or "..."
    return "..."


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
