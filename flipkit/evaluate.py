"""`python -m flipkit.evaluate WORKDIR EVALUATOR [name=value ...]`: what a finished run is worth.

WORKDIR is a run's folder, or a .keras file. EVALUATOR is zero_shot, retrieval, caption_choice or, for
classifiers, accuracy:

    python -m flipkit.evaluate W zero_shot data='test-*.tar' classnames=classnames.json
    python -m flipkit.evaluate W zero_shot ... mask_ratio=0.5 ensemble=true
    python -m flipkit.evaluate W retrieval data='test-*.tar'
    python -m flipkit.evaluate W accuracy data='test-*.tar'
    python -m flipkit.evaluate W caption_choice data=captioned_shapes data.split=word_order
"""

import json
import pathlib
import sys

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest
from flipkit.process import cache_programs
from flipkit.settings import split_settings


def main(arguments):
    """Runs the command line; returns the exit code."""
    try:
        if len(arguments) < 3:
            raise ConfigurationError(f"Expected a workdir and an evaluator. Usage: {__doc__}")
        where, name, *settings = arguments[1:]
        path = model_path(where)
        from flipkit import evaluation, load_model

        evaluator = evaluation.make(name, split_settings(settings))
        cache_programs()
        found = evaluator(load_model(path))
        Console(width=None if sys.stdout.isatty() else 120).print(
            table(found, f"{name} of {where}")
        )
        out = path.parent / "evaluations" / f"{name}.json"
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"settings": evaluator.get_config(), "found": found}, indent=1))
        print(f"Written to {out}")
    except FlipkitError as problem:
        print(f"flipkit: {problem}", file=sys.stderr)
        return 2
    return 0


def model_path(where) -> pathlib.Path:
    """The `.keras` file of a workdir, or the file itself."""
    path = pathlib.Path(where)
    if path.is_dir():
        path = path / "model.keras"
        if not path.is_file():
            runs = [p.parent.name for p in pathlib.Path(where).glob("*/model.keras")]
            hint = f" Finished runs in it: {', '.join(runs)}." if runs else ""
            raise ConfigurationError(
                f"No finished run in {where}: there is no model.keras.{hint} A run writes it at its "
                "end; the command that began it goes on from the last checkpoint."
            )
    elif not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UnknownName(f"No such workdir: {where}. {nearest(path.name, siblings)}")
    return path


def table(found, title) -> Table:
    """Metrics by row, groups by column where there are groups."""
    groups = list(dict.fromkeys(name.rpartition("/")[0] for name in found))
    result = Table("", *(group or "all" for group in groups), title=title)
    for metric in dict.fromkeys(name.rpartition("/")[2] for name in found):
        cells = (found.get(f"{group}/{metric}" if group else metric) for group in groups)
        result.add_row(metric, *("" if cell is None else _shown(metric, cell) for cell in cells))
    return result


def _shown(metric, value):
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if metric == "mrr" else f"{value:.2%}"


if __name__ == "__main__":
    flags.FLAGS.set_gnu_getopt(True)
    logging.set_verbosity(logging.WARNING)
    app.run(main)
