"""Prints plans for described devices: `flipkit plan RECIPE --topology v3:8x16`."""

import importlib.metadata
import os
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from flipkit import files, process
from flipkit.commands import printing
from flipkit.errors import ConfigurationError

TRIM_EVERY = 10  # seconds
STOPPED = 130  # the exit code of a program that Ctrl-C has ended


def plan(run, name: str, options, console) -> int:
    """Plans a run on a topology, prints tables, writes files; returns the exit code.

    Args:
        run: a function that returns the `flipkit.Run`; called when the process is ready for JAX to start.
        name: of the recipe.
        options: the values of the command's flags, as attributes.
        console: where to print.
    """
    from flipkit.planning import advice, pictures, topology
    from flipkit.planning.ahead import Ahead

    where = topology.parse(options.topology)
    if where.chip.platform == "cpu":
        process.simulate_devices(where.count)
    if where.chip.platform == "tpu":
        process.describe_tpus()
    run, watch = run(), Watch()
    ahead = Ahead(
        run,
        where,
        index=options.phase,
        mesh=options.mesh,
        utilisation=options.utilisation,
        price=options.price,
        cache=options.cache,
        waiting=watch,
    )
    rows, largest, stopped = [], [], False
    try:
        for row in ahead.rows(options.masks, options.remat, options.microbatch):
            rows.append(row)
            if options.largest:
                largest.append(_largest(ahead, row))
    except KeyboardInterrupt:
        stopped = True
    title = f"flipkit plan {name} --topology {where.name}"
    if rows:
        _print(console, rows, [found for found in largest if found], ahead, title)
    for sentence in advice.advice(rows, largest):
        printing.say(console, sentence)
    if options.json and rows:
        files.write_json(options.json, document(ahead, name, rows, largest))
        print(f"Written to {options.json}")
    if (
        options.plot
        and rows
        and pictures.draw(rows, options.plot, title=_shown(title, ahead, rows))
    ):
        print(f"Drawn to {options.plot}")
    if stopped:
        print(f"Stopped; {len(rows)} of the rows are known.", flush=True)
        watch.leave()
    return STOPPED if stopped else 0


def document(ahead, name, rows, largest) -> dict:
    """Returns the content of the JSON file."""
    where = ahead.topology
    return {
        "recipe": name,
        "topology": where.name,
        "chip": where.chip._asdict(),
        "chips": where.chips,
        "devices": where.count,
        "limit": ahead.limit,
        "utilisation": ahead.utilisation,
        "price": ahead.price,
        "rows": rows,
        "largest": largest,
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("flipkit", "jax", "jaxlib", "keras", "libtpu")
            if _installed(package)
        },
    }


def _installed(package):
    return any(True for _ in importlib.metadata.distributions(name=package))


def _largest(ahead, row):
    from flipkit.planning.variants import Variant

    microbatch = row["microbatch"] or 0
    return ahead.largest(Variant(row["mask_ratio"], _settable(row["remat"]), microbatch))


def _settable(remat):
    return None if remat == "mixed" else remat


class Watch:
    """Runs a compiler in a thread, so that Ctrl-C is heard, and shows how long it has worked.

    A compiler does not answer while it works, for minutes.
    """

    def __init__(self):
        self.thread = None

    def __call__(self, label: str, work) -> Any:
        """Returns what `work` returns."""
        answers: dict[str, Any] = {}

        def answer():
            try:
                answers["result"] = work()
            except BaseException as problem:  # handed on to the thread that waits
                answers["problem"] = problem

        self.thread = threading.Thread(target=answer, daemon=True)
        self.thread.start()
        console, begin, trimmed = Console(stderr=True), time.perf_counter(), 0.0
        if not console.is_terminal:
            print(f"compiling {label}", file=sys.stderr, flush=True)
        with console.status(f"compiling {label}") as status:
            while self.thread.is_alive():
                self.thread.join(0.2)
                spent = time.perf_counter() - begin
                status.update(f"compiling {label}: {spent:.0f} s")
                if spent > trimmed + TRIM_EVERY:
                    trimmed = spent
                    process.return_memory()
        process.return_memory()
        if "problem" in answers:
            raise answers["problem"]
        return answers["result"]

    def leave(self):
        """Ends the process if a compiler still works: it can't be stopped, and Python would wait."""
        if self.thread is not None and self.thread.is_alive():
            sys.stdout.flush()
            os._exit(STOPPED)


# Tables ------------------------------------------------------------------------------------------


def _print(console, rows, largest, ahead, title):
    console.print(steps_table(rows, ahead, _shown(title, ahead, rows)))
    if largest:
        console.print(steps_table(largest, ahead, "The largest batch that fits"))
    if any(row["collectives"] for row in rows):
        console.print(collectives_table(rows))
    chip = ahead.topology.chip
    if chip.source:
        printing.say(
            console,
            f"A {chip.name}: {chip.flops / 1e12:g} TFLOP/s, {chip.links / 1e9:g} GB/s over its links "
            f"({chip.source}).",
        )


def _shown(title, ahead, rows):
    row = rows[0]
    by = ", by formula" if row["by"] == "formula" else ""
    mesh = "x".join(map(str, row["mesh"]))
    layout = row["layout"] or "one device"
    count = ahead.topology.count
    return f"{title}: {count:,} device{'s' * (count != 1)}, {layout} {mesh}{by}"


def steps_table(rows, ahead, title) -> Table:
    """Returns the table of a step: memory, FLOPs, time, and the whole run."""
    from flipkit.planning.units import FLOPS, unit_of

    products = unit_of((row["flops_per_device"] for row in rows), FLOPS)
    unit = unit_of(row["memory"]["needed"] or row["memory"]["peak"] for row in rows)
    micro = any(row["microbatch"] for row in rows)
    timed = rows[0]["seconds"]["step"] is not None
    columns = ["mask ratio", "remat", *(["microbatch"] if micro else []), "batch"]
    columns += ["arguments", "temporaries", f"peak, {unit.name}", "fits", products.name]
    if timed:
        columns += ["sent MiB", "step s", "pairs/s", "hours", "chip-hours"]
    if ahead.price is not None and timed:
        columns.append("cost")
    table = printing.table(*columns, title=title, caption=_caption(ahead, timed), numbers=True)
    for row in rows:
        memory, spent = row["memory"], row["seconds"]
        peak = memory["peak"] if row["fits"] else memory["needed"]
        cells = ["" if row["mask_ratio"] is None else f"{row['mask_ratio']:g}", row["remat"] or ""]
        cells += [f"{row['microbatch']:,}" if row["microbatch"] else ""] if micro else []
        cells += [f"{row['batch_size']:,}"]
        cells += [unit.shown(memory["arguments"])]
        cells += ["" if memory["temporaries"] is None else unit.shown(memory["temporaries"])]
        cells += [unit.shown(peak), "yes" if row["fits"] else "no"]
        cells += [products.shown(row["flops_per_device"])]
        if timed and row["fits"]:
            cells += [f"{row['bytes_sent'] / 2**20:,.0f}", f"{spent['step']:.3g}"]
            cells += [f"{row['pairs_per_second']:,.0f}", f"{row['hours']:,.1f}"]
            cells += [f"{row['chip_hours']:,.0f}"]
            cells += [] if ahead.price is None else [f"{row['cost']:,.0f}"]
        table.add_row(*cells)
    return table


def _caption(ahead, timed):
    limit = "" if ahead.limit is None else f" The limit is {ahead.limit / 2**30:.2f} GiB."
    text = f"Memory, FLOPs and bytes are those of one device.{limit}"
    if timed:
        text += (
            f" Times are a forecast: products at {ahead.utilisation:.0%} of the chip's peak, then what is "
            "sent at the speed of its links."
        )
    return f"{text}\n"


def collectives_table(rows) -> Table:
    """Returns the table of what devices send each other in a step."""
    columns = ("mask ratio", "remat", "collective", "number", "MiB", "sent MiB")
    table = printing.table(*columns, title="Collectives of a step, on one device", numbers=True)
    for row in rows:
        first = ["" if row["mask_ratio"] is None else f"{row['mask_ratio']:g}", row["remat"] or ""]
        for kind, found in row["collectives"].items():
            number = f"{found['count']:,}"
            if found["unknown"]:
                number += f" ({found['unknown']} in a loop of unknown length)"
            sizes = (f"{found[key] / 2**20:,.1f}" for key in ("bytes", "sent"))
            table.add_row(*first, kind, number, *sizes)
            first = ["", ""]
    return table


def numbers(text, flag, kind: type = float) -> list | None:
    """Returns the numbers of a flag, "0,0.5,0.75"; None for none.

    Raises:
        ConfigurationError: they are no numbers.
    """
    if text is None:
        return None
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as problem:
        such = "0,0.5,0.75" if kind is float else "0,256,1024"
        raise ConfigurationError(
            f"Expected numbers, such as --{flag} {such}. Received: {text!r}"
        ) from problem
