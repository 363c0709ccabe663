"""`flipkit profile RECIPE [name=value ...]`: trains a run's first steps and prints where their time goes.

RECIPE and name=value are those of `flipkit run`. Prints images per second, the share of time spent
waiting for data, FLOP/s, the shares of the towers, the loss and the optimizer, and the operations that
take longest. It writes a trace of the steps for xprof, TensorBoard or Perfetto, and keeps nothing else.
"""

import pathlib
import re

from absl import flags
from rich.markup import escape
from rich.table import Table

from flipkit import files, process, recipe
from flipkit.commands import printing, shell
from flipkit.errors import ConfigurationError
from flipkit.settings import split_settings

FLAGS = shell.Flags()
_STEPS = flags.DEFINE_string(
    "steps",
    "10:15",
    "Steps to trace, a:b, from 0: a and those up to b, without b; default: 10:15. Step 0 compiles.",
    flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the trace; default: profiles/<recipe's name>.",
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.", flag_values=FLAGS)
_PEAK = flags.DEFINE_float(
    "peak",
    None,
    "FLOP/s of a device at most, such as 197e12, for MFU; default: what its maker states.",
    lower_bound=1.0,
    flag_values=FLAGS,
)
TOP = 15  # operations that are printed; the JSON has all of them


def main(arguments):
    """Trains a run's first steps and prints where their time goes."""
    words = FLAGS.words(arguments, str(__doc__))
    if not words:
        raise ConfigurationError(
            "Expected a recipe: flipkit profile RECIPE [name=value ...]. "
            f"Known: {', '.join(recipe.names())}."
        )
    first, last = steps(_STEPS.value)
    name, *settings = words
    run = recipe.make(recipe.load(name), split_settings(settings))
    folder = pathlib.Path(_WORKDIR.value or f"profiles/{pathlib.Path(name).stem}")
    from flipkit import profiling  # imports Keras, too slow for a mistake above

    process.cache_programs()
    with process.named_programs():
        found = profiling.profile(run, folder, first, last, _PEAK.value)
    console = printing.console()
    console.print(step_table(found, name))
    console.print(parts_table(found))
    console.print(operations_table(found))
    printing.say(console, f"Trace: {found['trace']}")
    printing.say(console, f"To open it: pip install xprof, and xprof --port 8791 {folder}")
    beside = found["trace"].replace(".xplane.pb", ".trace.json.gz")
    printing.say(console, f"Or in Perfetto: open {beside} in https://ui.perfetto.dev")
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        files.write_json(path, found)
        printing.say(console, f"Written to {path}")
    return 0


def steps(text: str) -> tuple[int, int]:
    """The two numbers in a:b.

    Raises:
        ConfigurationError: no such numbers.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first < last:
        raise ConfigurationError(
            f"Expected a:b, steps from 1 on with a below b, such as 10:15. Received: --steps={text}"
        )
    return first, last


def step_table(found, name) -> Table:
    """Returns the table of a step: its time, its rates, how much of the device they use."""
    table = printing.table(title=f"flipkit profile {name}")
    devices, (first, last) = found["devices"], found["steps"]
    table.add_row("steps", f"{first} to {last - 1}, {found['batch_size']:,} images each")
    table.add_row("devices", escape(f"{devices['count']} x {devices['kind']}"))
    table.add_row("step", f"{1e3 * found['step_seconds']:,.1f} ms")
    table.add_row("images/s", f"{found['images_per_second']:,.1f}")
    table.add_row("waiting for data", f"{found['parts']['input']:.1%}")
    table.add_row("FLOPs of a step", f"{found['flops']:.3g}")
    table.add_row("FLOP/s of a device", f"{found['flops_per_second']:.3g}")
    unknown = "unknown: set --peak, the device's FLOP/s at most"
    known = found["mfu"] and f"{found['mfu']:.1%} of {found['peak']:.3g} FLOP/s"
    table.add_row("MFU", known or unknown)
    return table


def parts_table(found) -> Table:
    """Returns the table of the parts' shares of time; forward and backward where a part has both."""
    table = printing.table("part", "share", "forward", "backward", title="\nTime", numbers=True)
    for part, share in found["parts"].items():
        if not share:
            continue  # the model has no such part
        back = found["backward"][part]
        both = (f"{share - back:.1%}", f"{back:.1%}") if back else ("", "")
        table.add_row(part, f"{share:.1%}", *both)
    return table


def operations_table(found) -> Table:
    """Returns the table of the operations that take longest, those of all blocks of a tower in one row."""
    columns = ("operation", "kind", "share", "a step")
    title = "\nOperations that take longest"
    table = printing.table(*columns, title=title, numbers=True)
    for operation in found["operations"][:TOP]:
        back = ", backward" if operation["direction"] == "backward" else ""
        row = (operation["kind"], f"{operation['share']:.1%}", f"{operation['count']:,.4g}")
        table.add_row(escape(f"{operation['name']}{back}"), *row)
    table.columns[1].justify = "left"
    return table
