"""`flipkit compare RECIPE name=a,b,c ... [name=value ...]`: which setting is better.

Trains RECIPE with every combination of the settings that have several values, each from several seeds
and all under one budget; prints a table that says which differences exceed the spread, and draws them:

    flipkit compare flip_shapes model.masker=random,grid seeds=3 samples=60_000
    flipkit compare flip_shapes mask_ratio=0.5,0.0 seconds=90 --workdir demo

One of `seconds` (of training), `samples` or `flops` is the budget that is equal; for equal seconds the
variants are measured and trained in turns. `seeds` is how many (1), or which: 0,2. `also='image_size=48
mask_ratio=0'` adds a variant by hand, any number of times. `metric` is what the table is ordered by
(zero_shot/top1), `chance` what a guess gets, `title` the picture's. `baseline=mask_ratio=0.0` names the
variant that the others are compared with: when did each reach what that one has at its end. The same
command again goes on where it was stopped; with other values it adds to what the folder has, and the
table shows all of it. Several processes may work in one folder.
"""

import pathlib
import sys
from typing import Any

from absl import flags
from rich.markup import escape
from rich.table import Table

from flipkit.commands import printing, shell
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.process import cache_programs
from flipkit.records import messages
from flipkit.settings import read, split_settings

FLAGS = shell.Flags()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the study; default: studies/<recipe>.", flag_values=FLAGS
)

METRIC = "zero_shot/top1"
NUMBERS = {"seconds": 1.0, "samples": 1.0, "flops": 1.0, "chance": 0.5}  # and what each is like
TEXTS = ("seeds", "metric", "title", "baseline")


def main(arguments):
    """Runs the command; returns the exit code."""
    words = FLAGS.words(arguments, str(__doc__))
    console = printing.console()
    if not words:
        raise ConfigurationError(f"Expected a recipe. Usage: {__doc__}")
    name, *words = words
    from flipkit import study  # imports Keras, which a mistake above need not wait for
    from flipkit.study import ranking

    also = [w.removeprefix("also=") for w in words if w.startswith("also=")]
    settings = split_settings(w for w in words if not w.startswith("also="))
    own: dict[str, Any] = {n: settings.pop(n) for n in TEXTS if n in settings}
    own |= read({n: settings.pop(n) for n in NUMBERS if n in settings}, NUMBERS)
    values = {n: study.split_values(text) for n, text in settings.items()}
    fixed = {n: found[0] for n, found in values.items() if len(found) == 1}
    chosen = study.variants(
        {n: found for n, found in values.items() if len(found) > 1},
        [split_settings(text.split()) for text in also],
    )
    if not chosen:
        raise ConfigurationError(
            "Nothing to compare: give a setting several values, such as mask_ratio=0,0.5"
        )
    budget, amount = _budget(own)
    workdir = pathlib.Path(_WORKDIR.value or f"studies/{pathlib.Path(name).stem}")
    seeds = study.seeds_of(own.get("seeds", "1"))
    cache_programs()
    made = study.Study(workdir, name, fixed, budget, amount)
    metric = own.get("metric", METRIC)
    labels = {v.label for v in chosen} | {result.variant.label for result in made.results()}
    if "baseline" in own and own["baseline"] not in labels:
        raise UnknownName(f"No variant is {own['baseline']!r}. {nearest(own['baseline'], labels)}")
    for variant in chosen:  # what is wrong is told before hours
        run = made.sized(variant, study.PROBE_PAIRS)
        run.count_data()
        study.check_metric(run, metric)
    failures = made.run(chosen, seeds, lambda line: printing.say(console, line))
    if results := made.results():
        rows = ranking.ranked(results, metric)
        baseline = ranking.find(rows, own["baseline"]) if "baseline" in own else None
        leads = ranking.leads(rows, baseline, metric, budget) if baseline else []
        equal = f"{budget} {amount:,.0f}" if budget != "flops" else f"{amount:.3g} FLOPs"
        console.print(table(rows, metric, f"{name}, equal {equal}"))
        console.print(costs_table(rows))
        if leads:
            console.print(leads_table(leads, baseline, metric))
        for line in remarks(results, rows, budget):
            printing.say(console, line)
        title = own.get("title", f"{metric} of {name}, equal {equal}")
        chance = own.get("chance")
        written = [
            workdir / "results.jsonl",
            *draw(made, rows, metric, title, chance, baseline, leads),
        ]
        printing.say(console, f"Written: {', '.join(map(str, written))}")
    for failure in failures:
        print(f"flipkit: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _budget(own):
    told = [name for name in ("seconds", "samples", "flops") if name in own]
    if len(told) != 1:
        raise ConfigurationError(
            "Expected one budget: seconds=90, samples=60_000 or flops=1e14. Received: "
            f"{' and '.join(told) or 'none'}"
        )
    amount = own[told[0]]
    if amount is None or amount <= 0:
        raise ConfigurationError(f"Expected a number above 0. Received: {told[0]}={own[told[0]]}")
    return told[0], amount


def draw(made, rows, metric, title, chance, baseline, leads) -> list[pathlib.Path]:
    """Draws the study's curves, and a sheet of its models' answers; returns what was written."""
    from flipkit import datasets, study
    from flipkit.study import answers, pictures

    found = [
        pictures.draw_study(
            rows,
            metric,
            made.budget,
            made.folder / "comparison.png",
            title=title,
            chance=chance,
            baseline=baseline,
            leads=leads,
        )
    ]
    asked = answers.zero_shot(made.sized(rows[0].variant, study.PROBE_PAIRS).evaluators)
    if asked is not None:
        seed = rows[0].results[0].seed
        folders = {row.variant.label: made.runs(row.variant) / f"seed={seed}" for row in rows}
        found.append(
            pictures.draw_answers(
                {label: answers.read(folder) for label, folder in folders.items()},
                datasets.get(asked.data),
                made.folder / "answers.png",
                title=f"Test pictures, and what the models of seed {seed} call them",
            )
        )
    return [path for path in found if path]


def table(rows, metric, title) -> Table:
    """The variants from the best down: the metric over seeds, and what it can't be told from."""
    phased = any(row.before is not None for row in rows)
    columns = ["before last phase"] if phased else []
    caption = (
        "±: standard deviation over seeds. same as: the rows that can't be told apart from this one "
        "(Tukey's test, 95 % for all pairs together); ? with fewer than two seeds."
    )
    columns = ["", "variant", metric, *columns, "seeds", "same as"]
    result = printing.table(*columns, title=title, caption=caption)
    for column in result.columns[2:]:
        column.justify = "right"
    for place, row in enumerate(rows, 1):
        spread = "" if row.spread is None else f" ± {messages.shown(metric, row.spread)}"
        reached = "diverged" if row.mean is None else messages.shown(metric, row.mean) + spread
        before = "" if row.before is None else messages.shown(metric, row.before)
        result.add_row(
            str(place),
            escape(row.variant.label),
            reached,
            *([before] if phased else ()),
            str(len(row.results)),
            "?" if row.like is None else ranges(row.like) or "none",
        )
    return result


def costs_table(rows) -> Table:
    """What each variant spent."""
    caption = (
        "image tokens: in the first phase. FLOPs: of training, counted. seconds: of training, measured; "
        "means over seeds."
    )
    columns = ("variant", "image tokens", "pairs", "FLOPs", "seconds")
    result = printing.table(*columns, title="What it cost", caption=caption, numbers=True)
    for row in rows:
        first = row.results[0]
        seconds = sum(r.seconds for r in row.results) / len(row.results)
        result.add_row(
            escape(row.variant.label),
            "" if first.image_tokens is None else str(first.image_tokens),
            f"{first.pairs:,}",
            f"{first.flops:.3g}",
            f"{seconds:,.1f}",
        )
    return result


def leads_table(leads, baseline, metric) -> Table:
    """When each variant had what the baseline has at its end."""
    title = f"Until {messages.shown(metric, baseline.mean)}, where {baseline.variant.label} ends"
    columns = ("variant", "sooner", "seconds", "pairs", "FLOPs")
    result = printing.table(*columns, title=title, numbers=True)
    rows = [(lead.variant.label, lead.sooner, lead.spent) for lead in leads]
    whole = {o: baseline.curve(o, metric)[-1][0] for o in ("seconds", "samples", "flops")}
    for label, sooner, spent in [*rows, (baseline.variant.label, 1.0, whole)]:
        if spent is None:
            result.add_row(escape(label), "never", "", "", "")
            continue
        seconds, pairs = f"{spent['seconds']:,.1f}", f"{spent['samples']:,.0f}"
        result.add_row(escape(label), f"{sooner:.2f}x", seconds, pairs, f"{spent['flops']:.3g}")
    return result


def remarks(results, rows, budget):
    """What a reader of the table has to know, a line each."""
    from flipkit.study import TOLERANCE, ranking

    yield starts(ranking.unequal_starts(results))
    for row in rows:
        if row.diverged:
            yield (
                f"{row.variant.label}: {row.diverged} of {len(row.results)} runs DIVERGED (numbers "
                "that are not finite). It is ranked last, and its means leave them out."
            )
    if budget == "seconds":
        uneven = ranking.unequal_seconds(results, TOLERANCE)
        told = ", ".join(f"seed {seed} by {share:.0%}" for seed, share in uneven.items())
        told = f"NO ({told})" if uneven else "yes"
        yield f"Seconds of training of each seed within {TOLERANCE:.0%} of their mean: {told}."


def ranges(places) -> str:
    """`[1, 2, 3, 7]` -> `1-3, 7`."""
    parts = []
    for place in places:
        if parts and place == parts[-1][1] + 1:
            parts[-1][1] = place
        else:
            parts.append([place, place])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def starts(unequal) -> str:
    """Whether the runs of a seed began with bit-equal weights."""
    if not unequal:
        return "Equal initial weights for each seed: yes."
    told = "; ".join(f"seed {seed}: {', '.join(digests)}" for seed, digests in unequal.items())
    return f"Equal initial weights for each seed: NO, the variants have different weights ({told})."
