"""The shell of all commands: finding one, its flags, mistakes, exit codes."""

import ast
import difflib
import pathlib
import sys
from collections.abc import Callable

from absl import flags, logging

from flipkit import plugins, process
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest
from flipkit.plugins import builtins

# What a command asks of its process before anything else is imported.
BEFORE: dict[str, Callable[[], None]] = {
    "run": process.take_huge_pages,
    "compare": process.take_huge_pages,
    "plan": process.stay_on_cpu,  # shapes need no accelerator
}
HELP = ("--help", "-h", "-help", "--helpshort", "--helpfull", "help")


def start(name: str | None = None):
    """Runs a command with the words of the command line, and ends the process with its exit code.

    Args:
        name: of the command; None takes it from the command line: `flipkit run ...`.
    """
    words = sys.argv[1:]
    if name is None:
        if not words or words[0] in HELP:
            print(overview())
            sys.exit(0 if words else 2)
        name, *words = words
    if name in BEFORE and not {*HELP} & {*words}:
        BEFORE[name]()
    process.skip_absent_tpu()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    sys.exit(call(str(name), words))


def call(name: str, words: list[str]) -> int:
    """The exit code of a command.

    Args:
        name: of the command.
        words: what follows it on the command line.
    """
    return answer(lambda words: find(name)(words), words)


def answer(command: Callable[[list[str]], int | None], words: list[str]) -> int:
    """The exit code of a command's function; what the user can put right is printed, and is 2."""
    try:
        return command(words) or 0
    except FlipkitError as problem:
        print(f"flipkit: {problem}", file=sys.stderr)
        return 2


def find(name: str):
    """The function of a command: flipkit's own without a look at plugins.

    Raises:
        UnknownName: there is no such command; names the nearest one.
    """
    try:
        return plugins.built_in("commands", name)
    except UnknownName:
        pass
    if name.startswith("-"):
        raise UnknownName(f"Expected a command before {name}. {nearest(name, own_commands())}")
    if name not in plugins.names("commands"):
        plugins.component("commands", name)  # which raises, with what broken plugins may have
    return _Foreign(name)


class _Foreign:
    """A plugin's command: what it raises names its plugin."""

    def __init__(self, name):
        self.name, self.function = name, plugins.component("commands", name)

    def __call__(self, words):
        try:
            return self.function(words)
        except FlipkitError:
            raise
        except Exception as problem:
            problem.add_note(str(plugins.note_problem("commands", self.name, problem)))
            raise


def own_commands() -> dict[str, str]:
    """{name: what it does} of flipkit's own, read from their files without importing them."""
    found = {}
    for name, target in builtins.flipkit_commands().items():
        file = pathlib.Path(__file__).with_name(f"{target.partition(':')[0].rpartition('.')[2]}.py")
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[name] = doc.partition("\n")[0].partition("`: ")[2].rstrip(".")
    return found


def overview() -> str:
    """What `flipkit --help` prints: the commands, and those of plugins."""
    found = own_commands()
    lines = ["Usage: flipkit COMMAND ...", ""]
    for component in plugins.offered_by_name("commands"):
        found[component.name] = f"{component.summary.rstrip('.')} ({component.distribution})"
    width = max(map(len, found))
    lines += [f"  {name.ljust(width)}  {what}" for name, what in found.items()]
    return "\n".join([*lines, "", "flipkit COMMAND --help tells more."])


# Flags ------------------------------------------------------------------------------------------


class Flags(flags.FlagValues):
    """A command's own flags: `WORKDIR = flags.DEFINE_string("workdir", ..., flag_values=FLAGS)`."""

    def words(self, arguments: list[str], usage: str, settings: bool = True) -> list[str]:
        """The command line without its flags, which are set.

        absl's flags, such as --verbosity, are taken too. --help prints the usage and ends the process.

        Args:
            arguments: what follows the command's name.
            usage: the command's docstring.
            settings: whether the command takes name=value, so that an unknown flag may be meant so.

        Raises:
            ConfigurationError: no such flag, or a value that it can't have; names the nearest.
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
            told = str(problem) if name is None else _unknown(name, arguments, [*self], settings)
            raise ConfigurationError(told) from problem
        return rest[1:]

    def described(self) -> str:
        """The flags and what they do, a line each."""
        told = {f"--{name}": " ".join((self[name].help or "").split()) for name in self}
        width = max(map(len, told), default=0)
        return "\n".join(f"  {name.ljust(width)}  {what}" for name, what in told.items())


def _unknown(name, arguments, own, settings) -> str:
    """What to say of a flag that a command has not: the nearest one, or how a setting is written."""
    told = f"Unknown flag --{name}."
    if close := difflib.get_close_matches(name, own, n=1, cutoff=0.6):
        return f"{told} Did you mean --{close[0]}?"
    if settings:
        return f"{told} Settings are written name=value: {name}={_value(name, arguments)}"
    return f"{told} Known: {', '.join(f'--{flag}' for flag in own) or 'none'}."


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
