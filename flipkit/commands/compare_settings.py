"""`flipkit compare RECIPE name=a,b,c ... [name=value ...]`: trains and ranks several settings of a recipe.

Trains RECIPE with every combination of the settings that have several values, each from several seeds
and all under one budget. Prints a table that marks the differences that exceed the spread, and draws them:

    flipkit compare flip_shapes model.masker=random,grid seeds=3 samples=60_000
    flipkit compare flip_shapes mask_ratio=0.5,0.0 seconds=90 --workdir demo

One of `seconds` (of training), `samples` or `flops` is the budget of each run. For equal seconds the
variants are measured and trained in turns. `seeds` is a number of seeds (1), or a list of them: 0,2.
`also='image_size=48 mask_ratio=0'` adds a variant, and may be repeated. `metric` orders the table
(zero_shot/top1), `chance` is the metric of a guess, `title` the picture's title. `baseline=mask_ratio=0.0`
names the variant that the others are compared with: when each reached the baseline's final metric. The
same command resumes a study that was stopped. With other values it adds runs to the study, and the table
shows all of them. Several processes may work in one folder.
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
NUMBERS = {
    "seconds": 1.0,
    "samples": 1.0,
    "flops": 1.0,
    "chance": 0.5,
}  # and a number of the same type
TEXTS = ("seeds", "metric", "title", "baseline")


def main(arguments):
    """Trains and ranks several settings of a recipe."""
    words = FLAGS.words(arguments, str(__doc__))
    console = printing.console()
    if not words:
        raise ConfigurationError(f"Expected a recipe. Usage: {__doc__}")
    name, *words = words
    from flipkit import study  # imports Keras, too slow for a mistake above
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
    for variant in chosen:  # mistakes are raised before hours of training
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
    given = [name for name in ("seconds", "samples", "flops") if name in own]
    if len(given) != 1:
        raise ConfigurationError(
            "Expected one budget: seconds=90, samples=60_000 or flops=1e14. Received: "
            f"{' and '.join(given) or 'none'}"
        )
    amount = own[given[0]]
    if amount is None or amount <= 0:
        raise ConfigurationError(f"Expected a number above 0. Received: {given[0]}={own[given[0]]}")
    return given[0], amount


def draw(made, rows, metric, title, chance, baseline, leads) -> list[pathlib.Path]:
    """Draws the study's curves, and a sheet of its models' answers; returns the files."""
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
    evaluator = answers.zero_shot(made.sized(rows[0].variant, study.PROBE_PAIRS).evaluators)
    if evaluator is not None:
        seed = rows[0].results[0].seed
        folders = {row.variant.label: made.runs(row.variant) / f"seed={seed}" for row in rows}
        found.append(
            pictures.draw_answers(
                {label: answers.read(folder) for label, folder in folders.items()},
                datasets.get(evaluator.data),
                made.folder / "answers.png",
                title=f"Test pictures, and what the models of seed {seed} call them",
            )
        )
    return [path for path in found if path]


def table(rows, metric, title) -> Table:
    """Returns the table of variants, best first: the metric over seeds, and the rows that do not differ."""
    phased = any(row.before is not None for row in rows)
    columns = ["before last phase"] if phased else []
    caption = (
        "±: standard deviation over seeds. same as: the rows whose means do not differ from this one's "
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
    """Returns the table of the pairs, FLOPs and seconds of each variant."""
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
    """Returns the table of when each variant reached the baseline's final metric."""
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
    """Yields remarks on the table, a line each: equal starts, divergence, equal seconds."""
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
        off = ", ".join(f"seed {seed} by {share:.0%}" for seed, share in uneven.items())
        answer = f"NO ({off})" if uneven else "yes"
        yield f"Seconds of training of each seed within {TOLERANCE:.0%} of their mean: {answer}."


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
    """Returns a line: whether the runs of each seed began with bit-equal weights."""
    if not unequal:
        return "Equal initial weights for each seed: yes."
    listed = "; ".join(f"seed {seed}: {', '.join(digests)}" for seed, digests in unequal.items())
    return (
        f"Equal initial weights for each seed: NO, the variants have different weights ({listed})."
    )
