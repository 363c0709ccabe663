"""flipkit on one GPU: speed, memory and utilisation at B/16 and L/16, beside open_clip, in ten minutes.

    python benchmarks/gpu.py --json gpu.json --plot gpu.png     # on a machine with a GPU
    python benchmarks/gpu.py --dry-run                          # the same rows, tiny, on a CPU

Each row is measured in a process of its own (gpu_rows.py), so that its peak of memory is its own. The most
important rows come first. A row that no longer fits into --time-limit is skipped, one that is still running
then is stopped, and both say so. docs/performance.md says how to carry what a machine without a network
lacks. As of now no GPU has run it: `NEEDS` holds guesses.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

HERE = pathlib.Path(__file__).parent
PEER = HERE.parent / ".venv-peer" / "bin" / "python"
RATIOS = (0.0, 0.5, 0.75)
AIM_OF_OPEN_CLIP, AIM_MFU = 1.2, 0.45  # images/s beside open_clip's; at L/16 without masks
# Seconds left under which a row is not begun.
NEEDS = {"recipe": 60, "train": 60, "contrastive": 40, "attention": 60, "largest": 60}
SPARE = 5  # seconds at the end for the table and the plot


def rows(options):
    """The rows, the most important first: dicts, as gpu_rows.py reads them."""
    steps = {"rounds": options.rounds, "steps": options.steps, "dtype": "mixed_bfloat16"}
    shared = {**steps, "remat": options.remat}
    peer = {"peer": options.peer, "compile": "inductor", "needs_cuda": True}

    def train(size, ratio, **more):
        batch = options.batches[size]
        row = {"kind": "train", "size": size, "mask_ratio": ratio, "batch": batch}
        return {**row, **shared, **peer, **more}

    def largest(size, ratio):
        row = {"kind": "largest", "size": size, "mask_ratio": ratio, "ceiling": None}
        return {**row, **shared, "batch": 2 * options.batches[size], "share": 1 / 16}

    found = [
        {"kind": "recipe", "size": "L", "batch": options.batches["L"], "steps": 20, "rate": 1e-4},
        *(train("L", ratio) for ratio in (0.0, 0.75)),
        {"kind": "contrastive", "pairs": 65_536, "dim": 768, "block": None, "rounds": 5},
        *(train("B", ratio) for ratio in (0.0, 0.75)),
        *(train(size, 0.5) for size in ("L", "B")),
        {
            "kind": "attention",
            "size": "L",
            "mask_ratio": 0.0,
            "batch": options.batches["L"],
            **steps,
        },
    ]
    if options.largest:
        found += [largest(size, ratio) for size in ("L", "B") for ratio in RATIOS]
    return [row for row in found if row["kind"] in options.only]


def dry(planned):
    """The rows in sizes for a CPU: one for each path through the code; the peer takes part in one."""
    found, seen = [], set()
    for row in map(small, planned):
        path = row["kind"]
        if row.get("size") == "dry L" and path == "train":
            path = name_of(row)  # three masks, for a line in the plot
            row["peer"] = None
        if path not in seen:
            found.append(row)
        seen.add(path)
    return found


def small(row):
    """A row in a size for a CPU."""
    row = dict(row)
    for name, value in {"steps": 2, "rounds": 2, "batch": 8, "pairs": 64, "dim": 16}.items():
        if name in row:
            row[name] = value
    if "size" in row:
        row["size"] = f"dry {row['size']}"
    changes = {
        "recipe": {"steps": 4, "rate": 1e-3},
        "train": {"compile": "eager", "needs_cuda": False},
        "contrastive": {"block": 1 << 8},
        "largest": {"batch": 4, "ceiling": 8, "share": 0.5},
    }
    return row | changes.get(row["kind"], {})


def name_of(row):
    """A row's name in the table: its kind and what it is of."""
    words = (row["kind"], row.get("size"), row.get("mask_ratio"), row.get("pairs"))
    return " ".join(
        f"{word:,}" if isinstance(word, int) else f"{word}" for word in words if word is not None
    )


def environment_of(row, options, programs):
    """The variables of a row's process."""
    environment = dict(os.environ)
    paths = [str(HERE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(paths)}
    # Rows share programs, such as those that initialise weights.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
    # Beside a peer JAX takes memory as it needs it, elsewhere all of it at once.
    alone = row["kind"] != "train"
    memory = ("MEM_FRACTION", "0.95") if alone else ("PREALLOCATE", "false")
    environment.setdefault(f"XLA_PYTHON_CLIENT_{memory[0]}", memory[1])
    if options.dry_run:
        fast = f"--xla_backend_optimization_level=0 {environment.get('XLA_FLAGS', '')}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": fast.strip()}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return environment


def measured(row, environment, seconds):
    """What gpu_rows.py finds of a row in at most so many seconds, with a `state` and its reason."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, log = pathlib.Path(folder, "found.json"), pathlib.Path(folder, "log")
        command = [sys.executable, str(HERE / "gpu_rows.py"), json.dumps(row), str(path)]
        with log.open("w") as told:
            process = subprocess.Popen(
                command, env=environment, stdout=told, stderr=told, start_new_session=True
            )
            try:
                code = process.wait(seconds)
                state = {"state": "done"} if code == 0 else {"state": "failed"}
            except subprocess.TimeoutExpired:
                state = {"state": "stopped", "reason": "the time limit came"}
            finally:
                end(process)
        if state["state"] == "failed":
            words = log.read_text(errors="replace").strip()
            print(words[-3000:], file=sys.stderr)
            state["reason"] = words.rpartition("\n")[2]
        found = json.loads(path.read_text()) if path.exists() else {}
    return {**found, **state, "seconds": round(time.monotonic() - start, 1)}


def end(process):
    """Ends a row's process and the peer that it may have started: they are one session."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def utilisation(row, peak):
    """Adds the share of the card's peak that a row's model FLOPs reach: `mfu`, of both libraries."""
    for found in (row, row.get("open_clip", {})):
        if peak and "rate" in found and "flops" in row:
            found["mfu"] = found["rate"] * row["flops"] / peak


def tables(results):
    """The results as tables of rich."""
    train = Table(
        "size", "mask", "batch", "images/s", "MFU", "peak GiB", "open_clip", "MFU", "peak GiB",
        "ratio", "compile s", title=f"A training step, bfloat16, {results.get('device', 'no device')}",
        caption=f"Aims: {AIM_OF_OPEN_CLIP} times open_clip's images/s; MFU {AIM_MFU:.0%} at L, mask 0.",
    )  # fmt: skip
    others = Table("row", "found", title="Other rows")
    for row in results["rows"]:
        if row["kind"] == "train" and "rate" in row:
            theirs = row.get("open_clip", {})
            train.add_row(
                row["size"], f"{row['mask_ratio']:g}", f"{row['batch']}", *speed_of(row),
                *speed_of(theirs), shown(theirs, "ratio", "{:.2f}"),
                shown(row, "compile_seconds", "{:.0f}"),
            )  # fmt: skip
        if row["kind"] != "train" or row["state"] != "done" or "absent" in row.get("open_clip", {}):
            others.add_row(name_of(row), sentence(row))
    return train, others


def speed_of(found):
    """Images/s, MFU and the peak of memory, as a table has them."""
    parts = ("rate", "{:,.0f}"), ("mfu", "{:.1%}")
    return *(shown(found, *part) for part in parts), gibibytes(found.get("peak"))


def shown(found, name, form):
    """`found[name]` in a form; empty where there is none."""
    return form.format(found[name]) if found.get(name) is not None else ""


def gibibytes(count):
    """Bytes in GiB; empty where nothing counted them."""
    return f"{count / 2**30:.2f}" if count else ""


def sentence(row):
    """What a row found, or why it found nothing, in one line."""
    parts = {
        "recipe": recipe_found,
        "contrastive": contrastive_found,
        "attention": attention_found,
        "largest": largest_found,
        "train": lambda row: row.get("open_clip", {}).get("absent", ""),
    }
    reason = f"{row['state']}: {row['reason']}" if "reason" in row else ""
    return "; ".join(filter(None, (parts[row["kind"]](row), reason)))


def recipe_found(row):
    """How the loss goes, and the first step's time."""
    if "losses" not in row:
        return ""
    return (
        f"loss {row['losses'][0]:.3f} to {row['losses'][-1]:.3f} in {len(row['losses'])} steps of "
        f"{row['batch']} pairs; compiled in {row['compile_seconds']:.0f} s, first step "
        f"{row['first_step_seconds']:.1f} s; peak {gibibytes(row['peak'] or row['memory'])} GiB"
    )


def contrastive_found(row):
    """Time and memory of the two losses."""
    found = []
    for name in ("blocks", "whole"):
        part = row.get(name, {})
        if "seconds" in part:
            found.append(f"{name} {part['seconds']:.4f} s, {gibibytes(part['memory'])} GiB")
        elif part:
            found.append(f"{name}: {part['absent']}")
    return "; ".join(found)


def attention_found(row):
    """Speed and memory of each implementation."""
    return "; ".join(
        f"{name} {part['rate']:,.0f} images/s, {gibibytes(part['memory'])} GiB"
        if "rate" in part
        else f"{name}: {part['absent']}"
        for name, part in row.get("implementations", {}).items()
    )


def largest_found(row):
    """The largest batch found."""
    if "largest" not in row:
        return ""
    found = f"batch {row['largest']:,}"
    if row["peak"]:
        found += f", peak {gibibytes(row['peak'])} GiB"
    return found if row.get("whole_search") else f"{found}, and perhaps more"


def draw(results, path):
    """Images/s over the mask ratio, a panel for each size, a line for each library."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    known = [row for row in results["rows"] if row["kind"] == "train" and "rate" in row]
    sizes = list(dict.fromkeys(row["size"] for row in known))
    if not sizes:
        print("No row has a rate: nothing to draw.")
        return
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(5 * len(sizes), 4), layout="constrained", squeeze=False
    )
    for axis, size in zip(axes[0], sizes, strict=True):
        mine = sorted((row for row in known if row["size"] == size), key=lambda r: r["mask_ratio"])
        both = [row for row in mine if "rate" in row.get("open_clip", {})]
        axis.plot(*points(mine), marker="o", label="flipkit")
        for row in mine:
            text = shown(row, "mfu", "MFU {:.0%}")
            place = row["mask_ratio"], row["rate"]
            axis.annotate(text, place, xytext=(-8, 4), textcoords="offset points", ha="right")
        if both:
            ratios, rates = points([{**row, **row["open_clip"]} for row in both])
            axis.plot(ratios, rates, marker="s", label="open_clip, compiled")
            aims = [AIM_OF_OPEN_CLIP * rate for rate in rates]
            label = f"aim: {AIM_OF_OPEN_CLIP} x open_clip"
            axis.plot(ratios, aims, linestyle=":", color="grey", label=label)
        axis.set(title=f"{size}, batch {mine[0]['batch']}", xlabel="mask ratio", ylabel="images/s")
        axis.set_xticks(RATIOS)
        axis.set_ylim(bottom=0)
        axis.set_xlim(-0.3, 0.85)  # room for the labels, left of their points
        axis.set_ylim(top=1.15 * axis.get_ylim()[1])  # room for the first line's labels
        axis.legend(frameon=False, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"A training step, bfloat16, {results['device']}")
    figure.savefig(path, dpi=110)
    print(f"Written to {path}")


def points(found):
    """Mask ratios and images/s of rows."""
    return [row["mask_ratio"] for row in found], [row["rate"] for row in found]


def parsed():
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--json", default="gpu.json", help="written after each row")
    parser.add_argument("--plot", help="file for images/s over the mask ratio")
    parser.add_argument("--only", default=",".join(NEEDS), help="kinds of rows")
    parser.add_argument("--largest", action="store_true", help="search the largest batches too")
    parser.add_argument("--batches", default="B=256,L=128", help="pairs of a step by size")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--remat", default="none", help="none or block, in the rows of steps")
    parser.add_argument("--peak", type=float, help="dense bfloat16 FLOP/s of the card")
    default = str(PEER) if PEER.exists() else sys.executable
    parser.add_argument("--peer", default=default, help="Python with open_clip and torch")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - NEEDS.keys():
        parser.error(f"--only knows {', '.join(NEEDS)}. Received: {', '.join(sorted(unknown))}")
    sizes = dict(part.split("=") for part in options.batches.split(","))
    options.batches = {size: int(count) for size, count in sizes.items()}
    return options


def main():
    """Measures the rows in turn while there is time."""
    options = parsed()
    deadline = time.monotonic() + options.time_limit - (0 if options.dry_run else SPARE)
    results = {"time_limit": options.time_limit, "dry_run": options.dry_run, "rows": []}
    planned = rows(options)
    with tempfile.TemporaryDirectory() as programs:
        for row in dry(planned) if options.dry_run else planned:
            left, need = deadline - time.monotonic(), 1 if options.dry_run else NEEDS[row["kind"]]
            if left <= need:
                reason = f"{max(left, 0):.0f} s are left, and it needs {need} or more"
                found = {"state": "skipped", "reason": reason}
            else:
                found = measured(row, environment_of(row, options, programs), left)
            for name in ("device", "versions", "limit", "card_flops", "card_source"):
                if name in found:
                    results[name] = found.pop(name)
            if options.peak:
                results |= {"card_flops": options.peak, "card_source": "--peak"}
            results["rows"].append({**row, **found})
            utilisation(results["rows"][-1], results.get("card_flops"))
            told = name_of(row), found["state"], found.get("reason")
            print(": ".join(filter(None, told)), flush=True)
            write(options.json, results)
    for table in tables(results):
        if table.row_count:
            Console(width=150).print(table)
    print(f"Written to {options.json}")
    if "card_source" in results:
        flops = results["card_flops"] or "unknown"
        print(f"Peak FLOP/s of the card: {flops} ({results['card_source']})")
    if options.plot:
        draw(results, options.plot)


def write(path, results):
    """Writes the file anew, whole: a run that is ended leaves the one before."""
    part = pathlib.Path(f"{path}.part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
