"""Finds and starts commands; parses their flags, prints mistakes, returns exit codes."""

import ast
import difflib
import inspect
import pathlib
import sys
from collections.abc import Callable

from absl import flags, logging

from flipkit import __version__, plugins, process
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest
from flipkit.plugins import builtins

# A command's settings of its process, applied before other imports.
BEFORE: dict[str, Callable[[], None]] = {
    "run": process.take_huge_pages,
    "compare": process.take_huge_pages,
    "profile": process.take_huge_pages,
    "plan": process.stay_on_cpu,  # shapes need no accelerator
}
HELP = ("--help", "-h", "-help", "--helpshort", "--helpfull", "help")


def start(name: str | None = None):
    """Runs a command with the words of the command line; ends the process with the exit code.

    Args:
        name: of the command; None reads it from the command line: `flipkit run ...`.
    """
    words = sys.argv[1:]
    if name is None:
        if not words or words[0] in HELP:
            print(overview())
            sys.exit(0 if words else 2)
        if words[0] == "--version":
            print(f"flipkit {__version__}")
            sys.exit(0)
        name, *words = words
    if name in BEFORE and not {*HELP} & {*words}:
        BEFORE[name]()
    process.skip_absent_tpu()
    flags.FLAGS.mark_as_parsed()  # a plugin may log before a command reads flags, or read none
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    sys.exit(call(str(name), words))


def call(name: str, words: list[str]) -> int:
    """Runs a command; returns its exit code.

    Args:
        name: of the command.
        words: the rest of the command line.
    """
    return answer(lambda words: find(name)(words), words)


def answer(command: Callable[[list[str]], int | None], words: list[str]) -> int:
    """Calls a command's function; returns its exit code. Prints a FlipkitError and returns 2."""
    try:
        return command(words) or 0
    except FlipkitError as problem:
        print(f"flipkit: {problem}", file=sys.stderr)
        return 2


def find(name: str):
    """Returns the function of a command. Loads no plugins for flipkit's own commands.

    Raises:
        UnknownName: no command has this name; the message names the nearest one.
    """
    try:
        return plugins.built_in("commands", name)
    except UnknownName:
        pass
    if name.startswith("-"):
        raise UnknownName(f"Expected a command before {name}. {nearest(name, own_commands())}")
    if name not in plugins.names("commands"):
        plugins.component("commands", name)  # raises; the message lists broken plugins
    return _Foreign(name)


class _Foreign:
    """A plugin's command. --help prints its docstring; an exception gets a note that names the plugin."""

    def __init__(self, name):
        self.name, self.function = name, plugins.component("commands", name)

    def __call__(self, words):
        if words and words[0] in HELP:
            print(inspect.getdoc(self.function) or f"flipkit {self.name} has no description.")
            return 0
        try:
            return self.function(words)
        except FlipkitError:
            raise
        except Exception as problem:
            problem.add_note(str(plugins.note_problem("commands", self.name, problem)))
            raise


def own_commands() -> dict[str, str]:
    """Returns {name: summary} of flipkit's own commands, read from their files without importing them."""
    found = {}
    for name, target in builtins.flipkit_commands().items():
        file = pathlib.Path(__file__).with_name(f"{target.partition(':')[0].rpartition('.')[2]}.py")
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[name] = doc.partition("\n")[0].partition("`: ")[2].rstrip(".")
    return found


def overview() -> str:
    """Returns the text of `flipkit --help`: flipkit's commands, and those of plugins."""
    found = own_commands()
    lines = ["Usage: flipkit COMMAND ...", ""]
    for component in plugins.offered_by_name("commands"):
        whose, name = component.distribution, component.name
        what = component.summary.rstrip(".") or {"ok": "no description"}.get(
            component.status, "broken"
        )
        found[f"{whose}:{name}" if name in found else name] = f"{what} ({whose})"
    width = max(map(len, found))
    lines += [f"  {name.ljust(width)}  {what}" for name, what in found.items()]
    return "\n".join([*lines, "", "flipkit COMMAND --help describes a command."])


# Flags ------------------------------------------------------------------------------------------


class Flags(flags.FlagValues):
    """A command's own flags: `WORKDIR = flags.DEFINE_string("workdir", ..., flag_values=FLAGS)`."""

    def words(self, arguments: list[str], usage: str, settings: bool = True) -> list[str]:
        """Sets the flags; returns the other words of the command line.

        Also sets absl's flags, such as --verbosity. --help prints the usage and ends the process.

        Args:
            arguments: the words after the command's name.
            usage: the command's docstring.
            settings: whether the command takes name=value, which the message for an unknown flag shows.

        Raises:
            ConfigurationError: unknown flag, or invalid value; the message names the nearest flag.
        """
        if {*HELP[:-1]} & {*arguments}:
            print(f"{usage.strip()}\n\n{self.described()}".rstrip())
            sys.exit(0)
        self.unparse_flags()
        for name in self:
            self[name].unparse()
        self.set_gnu_getopt(True)  # flags may follow name=value
        try:
            rest = self(["flipkit", *arguments], known_only=True)
            flags.FLAGS.set_gnu_getopt(True)
            rest = flags.FLAGS(rest)
        except flags.Error as problem:
            name = getattr(problem, "flagname", None)
            message = str(problem) if name is None else _unknown(name, arguments, [*self], settings)
            raise ConfigurationError(message) from problem
        return rest[1:]

    def described(self) -> str:
        """Returns a line for each flag: name and help."""
        lines = {f"--{name}": " ".join((self[name].help or "").split()) for name in self}
        width = max(map(len, lines), default=0)
        return "\n".join(f"  {name.ljust(width)}  {what}" for name, what in lines.items())


def _unknown(name, arguments, own, settings) -> str:
    """Returns the message for an unknown flag: the nearest flag, or the name=value to write."""
    text = f"Unknown flag --{name}."
    if close := difflib.get_close_matches(name, own, n=1, cutoff=0.6):
        return f"{text} Did you mean --{close[0]}?"
    if settings:
        return f"{text} Settings are written name=value: {name}={_value(name, arguments)}"
    return f"{text} Known: {', '.join(f'--{flag}' for flag in own) or 'none'}."


def _value(name, arguments):
    """Returns the value of a flag on the command line: `--name=value`, `--name value`."""
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if argument.startswith("-") and flag.lstrip("-") == name:
            after = arguments[place + 1 : place + 2]
            if not equals and after and "=" not in after[0] and not after[0].startswith("--"):
                return after[0]
            return value or "..."
    return "..."
