"""`flipkit run RECIPE [name=value ...] --workdir DIR`: trains the model of a recipe.

RECIPE is a file with a function `recipe`, a name (--recipes lists them), or a run.json. name=value
sets an argument of the recipe function, or anything in its run by a dotted path. --list lists all
settings with their meanings, `--list model.image mask` those with one of these words in their path.
The same command resumes the run from the last checkpoint.
"""

import pathlib

from absl import flags
from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flipkit import recipe
from flipkit.commands import loopback, printing, shell
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest_path
from flipkit.process import cache_programs
from flipkit.settings import split_settings

FLAGS = shell.Flags()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default: runs/<recipe's name>.", flag_values=FLAGS
)
_RECIPES = flags.DEFINE_bool(
    "recipes", False, "List the recipes that have a name, and exit.", flag_values=FLAGS
)
_HOSTS = flags.DEFINE_string(
    "hosts",
    None,
    "Processes that train together, one on each host; without --host all start here. auto: found by JAX "
    "on Cloud TPU, GKE and Slurm.",
    flag_values=FLAGS,
)
_HOST = flags.DEFINE_integer("host", None, "Number of this host, from 0.", 0, flag_values=FLAGS)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of host 0, for --hosts.", flag_values=FLAGS
)
_LIST = flags.DEFINE_bool(
    "list", False, "List the settings of RECIPE and their meanings, and exit.", flag_values=FLAGS
)


def main(arguments):
    """Trains the model of a recipe."""
    words = FLAGS.words(arguments, str(__doc__))
    console = printing.console()
    if _RECIPES.value:
        console.print(recipes_table())
        return 0
    if not words:
        raise ConfigurationError(
            "Expected a recipe: flipkit run RECIPE [name=value ...] --workdir DIR. "
            f"Known: {', '.join(recipe.names())}."
        )
    name, *words = words
    function = recipe.load(name)
    from flipkit import hosts  # imports Keras, too slow for a mistake above

    if not _LIST.value and {_HOSTS.value, _HOST.value, _COORDINATOR.value} != {None}:
        count = _count_of_hosts()
        if count and _HOST.value is None:
            return loopback.start(arguments, count)
        hosts.join(_COORDINATOR.value, count, _HOST.value)
    parts = [word for word in words if _LIST.value and "=" not in word]
    run = recipe.make(function, split_settings(w for w in words if w not in parts))
    if _LIST.value:
        console.print(settings_list(function, run, parts, console.width))
        return 0
    cache_programs()
    path = pathlib.Path(name)
    short = f"{path.parent.name}-again" if path.suffix == ".json" else path.stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{short}")
    with hosts.together():
        run.count_data()
        if hosts.is_first():
            console.print(run_table(run, name, workdir))
        run.start(workdir, recipe=name, say=lambda text: printing.say(console, text))
    return 0


def _count_of_hosts() -> int | None:
    """The number in --hosts; None for auto.

    Raises:
        ConfigurationError: no such number, or --host and --coordinator that do not fit it.
    """
    text, host, coordinator = _HOSTS.value, _HOST.value, _COORDINATOR.value
    if text == "auto" and host is None and coordinator is None:
        return None
    count = int(text) if text and text.isdigit() else 0
    if not count or (host is None) != (coordinator is None) or (host or 0) >= count:
        raise ConfigurationError(
            "Expected --hosts=N --host=I --coordinator=HOST:PORT, with I below N; --hosts=N alone, which "
            f"starts all N on this machine; or --hosts=auto. Received: --hosts={text} --host={host} "
            f"--coordinator={coordinator}"
        )
    return count


def recipes_table() -> Table:
    """Returns a table of the recipes: name, and first line of the docstring."""
    table = printing.table("recipe", "what it is", title="Recipes")
    for name in recipe.names():
        try:
            what = recipe.summary(recipe.load(name))
        except FlipkitError as problem:
            what = f"broken: {problem}"
        table.add_row(name, escape(what))
    return table


def settings_list(function, run, parts=(), width=printing.WIDTH) -> Group:
    """Returns the settings of a run below their owners, each with its value and meaning.

    Args:
        parts: lists only settings with one of these in their path; without parts, all.

    Raises:
        UnknownName: no path has such a part.
    """
    from flipkit.recipe import meanings  # imports Keras, too slow for a mistake

    found = meanings.settings(function, run)
    paths = [*recipe.dials(function), *run.paths()]
    for part in parts:
        if not any(part in path for path in paths):
            heads = {path.partition(".")[0] for path in paths}
            raise UnknownName(f"Nothing to set has {part!r}. {nearest_path(part, paths, heads)}")
    shown, longest = (
        [],
        max(len(s.path) + 1 + len(s.value) for rows in found.values() for s in rows),
    )
    for title, settings in found.items():
        rows = [s for s in settings if not parts or any(part in s.path for part in parts)]
        if not rows and parts and not any(part in title.partition("=")[0] for part in parts):
            continue
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=min(longest, 3 * width // 5), overflow="fold")
        table.add_column()
        for setting in rows:
            table.add_row(Text(f"{setting.path}={setting.value}"), Text(setting.meaning))
        shown += [Text(title, style="bold"), Padding(table, (0, 0, 1, 2), expand=False)]
    return Group(*shown)


def run_table(run, name, workdir) -> Table:
    """Returns the table of a run: model, parameters, patches, data, phases, plugins."""
    import jax
    import keras

    from flipkit import plugins
    from flipkit.encoders import shape_only, weights

    table = printing.table(title=f"flipkit run {name}")
    towers = run.model.encoders()
    table.add_row("model", " + ".join(_named(tower) for tower in towers.values()))
    counts = (f"{name} {weights(shape_only(tower)):,}" for name, tower in towers.items())
    table.add_row("parameters", ", ".join(counts))
    for name, fact in run.model.facts().items():
        table.add_row(name, fact)
    table.add_row("data", escape(f"{run.data!r}: {len(run.data):,} samples"))
    freezes = getattr(run.model, "frozen", ()) or any(phase.frozen for phase in run.phases)
    model = shape_only(run.model) if freezes else None
    for i, phase in enumerate(run.phases):
        masked = "" if phase.mask_ratio is None else f", mask ratio {phase.mask_ratio:g}"
        sized = "" if phase.image_size is None else f", image size {phase.image_size}"
        what = (
            f"{phase.samples:,} pairs, {phase.steps:,} steps of {phase.batch_size:,}{masked}{sized}"
        )
        table.add_row(f"phase {i}", what)
        if freezes:
            model.frozen = model.frozen if phase.frozen is None else phase.frozen
            table.add_row("", escape(model.learning_summary()))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    mesh = "" if run.mesh is None else f", mesh={run.mesh}"
    table.add_row("devices", f"{devices}, distribution={run.distribution}{mesh}")
    table.add_row("precision", str(run.model.dtype_policy.name))
    found = ", ".join(f"{n} {v}" for n, v in plugins.distributions().items()) or "none"
    table.add_row("plugins", found)
    table.add_row("keras, jax", f"{keras.__version__}, {jax.__version__}")
    table.add_row("workdir", escape(str(workdir)))
    return table


def _named(part):
    names = ("image_size", "patch_size", "dim", "depth", "heads")
    sizes = {name: getattr(part, name, None) for name in names}
    shown = ", ".join(f"{n}={v}" for n, v in sizes.items() if v is not None)
    return f"{type(part).__name__}({shown})"
