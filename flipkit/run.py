"""`python -m flipkit.run RECIPE [name=value ...] --workdir DIR`: trains what a recipe describes.

RECIPE is a file with a function `recipe`, a name (--recipes lists them), or a run.json. name=value
sets an argument of the recipe function, or anything in its run by a dotted path (--list shows them).
The same command again goes on from the last checkpoint.
"""

import pathlib
import sys

from absl import app, flags, logging
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flipkit import recipe
from flipkit.errors import ConfigurationError, FlipkitError
from flipkit.process import cache_programs, take_huge_pages
from flipkit.settings import REQUIRED, split_settings

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<recipe's name>.")
_RECIPES = flags.DEFINE_bool("recipes", False, "List the recipes that have a name, and stop.")
_LIST = flags.DEFINE_bool("list", False, "List what can be set in RECIPE, and stop.")


def main(arguments):
    """Runs the command line; returns the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if _RECIPES.value:
            console.print(recipes_table())
            return 0
        if len(arguments) < 2:
            raise ConfigurationError(
                "Expected a recipe: python -m flipkit.run RECIPE [name=value ...] --workdir DIR. "
                f"Known: {', '.join(recipe.names())}."
            )
        name, *settings = arguments[1:]
        function = recipe.load(name)
        run = recipe.make(function, split_settings(settings))
        if _LIST.value:
            console.print(settings_table(function, run))
            return 0
        cache_programs()
        path = pathlib.Path(name)
        short = f"{path.parent.name}-again" if path.suffix == ".json" else path.stem
        workdir = pathlib.Path(_WORKDIR.value or f"runs/{short}")
        run.count_data()
        console.print(run_table(run, name, workdir))
        run.start(
            workdir, recipe=name, say=lambda text: console.print(escape(text), highlight=False)
        )
    except FlipkitError as problem:
        print(f"flipkit: {problem}", file=sys.stderr)
        return 2
    return 0


def recipes_table() -> Table:
    """Every recipe by name, with the first line of its docstring."""
    table = Table("recipe", "what it is", title="Recipes")
    for name in recipe.names():
        try:
            what = recipe.summary(recipe.load(name))
        except FlipkitError as problem:
            what = f"broken: {problem}"
        table.add_row(name, escape(what))
    return table


def settings_table(function, run) -> Table:
    """What name=value can set: the recipe's arguments first, then every path in its run."""
    table = Table("name", "value", title="What can be set: name=value")
    for name, value in recipe.dials(function).items():
        told = "needed" if value is REQUIRED else escape(repr(value))
        table.add_row(f"[bold]{name}[/bold]", f"{told}  (argument of the recipe)")
    for path, value in run.paths().items():
        table.add_row(path, escape(value if isinstance(value, str) else repr(value)))
    return table


def run_table(run, name, workdir) -> Table:
    """What will run: model, parameters, patches, data, phases, plugins."""
    import jax
    import keras

    from flipkit import plugins
    from flipkit.encoders import shape_only, weights

    table = Table(show_header=False, title=f"flipkit run {name}")
    towers = {n: getattr(run.model, n) for n in ("image", "text") if hasattr(run.model, n)}
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
    table.add_row("devices", f"{devices}, distribution={run.distribution}")
    table.add_row("precision", str(run.model.dtype_policy.name))
    found = ", ".join(f"{n} {v}" for n, v in plugins.distributions().items()) or "none"
    table.add_row("plugins", found)
    table.add_row("keras, jax", f"{keras.__version__}, {jax.__version__}")
    table.add_row("workdir", escape(str(workdir)))
    return table


def _named(part):
    names = ("image_size", "patch_size", "dim", "depth", "heads")
    sizes = {name: getattr(part, name, None) for name in names}
    told = ", ".join(f"{n}={v}" for n, v in sizes.items() if v is not None)
    return f"{type(part).__name__}({told})"


def start():
    """The console entry point."""
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow name=value
    logging.set_verbosity(logging.WARNING)
    app.run(main)


if __name__ == "__main__":
    take_huge_pages()
    start()
