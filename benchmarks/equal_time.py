"""One recipe with several values of one setting, each trained for the same wall-clock: table, picture.

    python benchmarks/equal_time.py flip_shapes --values mask_ratio=0.5,0.0 --seconds 90 --workdir demo

Each value's throughput is measured first, and its `pairs` set to what fits into the time, so that every
learning rate comes to its end. All start from bit-equal weights, which is checked. The recipe must have
an argument `pairs`.
"""

import argparse
import json
import pathlib
import sys
import time

from rich.console import Console
from rich.table import Table

from flipkit import journal, recipe, report
from flipkit.process import take_huge_pages
from flipkit.run import cache_programs
from flipkit.settings import split_settings

PROBE_PAIRS = 1_000_000  # any length: throughput does not depend on it


def main():
    """Trains, then prints the table and writes `comparison.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", help="name=value for every run")
    parser.add_argument("--values", required=True, help="name=a,b,c")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--metric", default="zero_shot/top1")
    parser.add_argument("--title", default=None)
    parser.add_argument("--chance", type=float, default=None)
    options = parser.parse_args()
    cache_programs()
    name, _, values = options.values.partition("=")
    function, began = recipe.load(options.recipe), time.time()
    fixed = split_settings(options.settings)
    runs = {}
    for value in values.split(","):
        settings = {**fixed, name: value}
        rate = recipe.make(function, {**settings, "pairs": str(PROBE_PAIRS)}).throughput()
        run = recipe.make(function, {**settings, "pairs": str(int(rate * options.seconds))})
        folder = options.workdir / f"{name}={value}"
        print(f"\n{name}={value}: {rate:,.0f} pairs/s, {run.model.masking_summary()}", flush=True)
        run.start(folder, recipe=options.recipe, say=lambda line: print(f"  {line}", flush=True))
        runs[value] = folder
    starts = {json.loads((f / "start.json").read_text())["initial_weights"] for f in runs.values()}
    rows = {f"{name}={value}": journal.read_metrics(f) for value, f in runs.items()}
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows))
    print(f"Equal initial weights: {'yes' if len(starts) == 1 else 'NO'} ({', '.join(starts)})")
    title = options.title or f"{options.metric} of {options.recipe}, equal time"
    picture = options.workdir / "comparison.png"
    if report.draw_comparison(rows, options.metric, picture, title=title, chance=options.chance):
        print(f"Picture: {picture}")
    print(f"All of it took {time.time() - began:,.0f} s.")
    return 0 if len(starts) == 1 else 1


def table(rows) -> Table:
    """Final metrics, a column per run."""
    found = {label: report.evaluations(r[-1]) for label, r in rows.items()}
    result = Table("", *rows, title="After equal time")
    result.add_row("seconds of training", *(f"{r[-1]['seconds']:.0f}" for r in rows.values()))
    result.add_row("pairs seen", *(f"{r[-1]['samples']:,}" for r in rows.values()))
    for metric in next(iter(found.values())):
        shown = (
            f"{f[metric]:.4f}" if metric.endswith("mrr") else f"{f[metric]:.1%}"
            for f in found.values()
        )
        result.add_row(metric, *shown)
    return result


if __name__ == "__main__":
    take_huge_pages()
    sys.exit(main())
