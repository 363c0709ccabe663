"""Time and memory of a contrastive loss with its gradient: in blocks, in one piece, and open_clip's.

    python benchmarks/loss.py          # contrastive, sigmoid, distillation at 8,192
    python benchmarks/loss.py --batches 2048,8192,32768 --losses contrastive --blocks 23 --picture loss.png

Programs take turns within a round, and ratios are taken within a round. Memory is what XLA's program
takes beside its arguments and results. The program of a whole matrix is compiled for every batch, and run
up to --whole pairs.
"""

import argparse
import json
import pathlib
import statistics
import time

from flipkit import losses  # first: it chooses Keras's backend

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from peer import Peer
from rich.console import Console
from rich.table import Table

from flipkit.losses import blocks, pairs

PEER = pathlib.Path(__file__).with_name("open_clip_loss.py")


def contrastive(image, text, scale, *_):
    """InfoNCE."""
    return losses.ContrastiveLoss()(image, text, scale)


def sigmoid(image, text, scale, *_):
    """SigLIP's loss."""
    return losses.SigmoidLoss()(image, text, scale, jnp.float32(-10))


def distillation(image, text, scale, image_of_teacher, text_of_teacher):
    """The divergence that `flipkit.Distillation` adds."""
    both = (image, image_of_teacher), (text, text_of_teacher)
    return sum(map(jnp.mean, pairs.divergences(*both, (scale, 30.0)))) / 2


LOSSES = {f.__name__: f for f in (contrastive, sigmoid, distillation)}


class Program:
    """A compiled loss with its gradient, and its inputs."""

    def __init__(self, name, count, dim, block):
        rng = np.random.default_rng(0)

        def unit(x):
            return jnp.float32(x / np.linalg.norm(x, axis=1, keepdims=True))

        image = unit(rng.normal(size=(count, dim)))
        text = unit(0.12 * image + rng.normal(size=(count, dim)) / dim**0.5)
        self.given = (image, text, jnp.float32(100), *(unit(x + 0.02) for x in (image, text)))
        blocks.BLOCK = block
        step = jax.jit(jax.value_and_grad(LOSSES[name], (0, 1, 2)))
        self.step = step.lower(*self.given).compile()
        self.memory = self.step.memory_analysis().temp_size_in_bytes

    def time_step(self):
        """Seconds of one call."""
        start = time.perf_counter()
        jax.block_until_ready(self.step(*self.given))
        return time.perf_counter() - start

    def found(self):
        """The loss and its gradient."""
        value, gradient = self.step(*self.given)
        return [np.asarray(x) for x in (value, *gradient)]


def apart(one, other):
    """The largest difference of two gradients, beside their largest element."""
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(one, other, strict=True)
    )


def measure(name, count, options):
    """Rows of the table: dicts."""
    whole = Program(name, count, options.dim, 1 << 62)
    programs = {f"blocks, 2^{b}": Program(name, count, options.dim, 1 << b) for b in options.blocks}
    runs: dict[str, Program | Peer] = {**programs}
    if count <= options.whole:
        runs = {"whole": whole, **runs}
        if options.peer and name != "distillation":
            runs["open_clip"] = Peer(options.peer, PEER, name, count, options.dim)
    rounds = [{key: p.time_step() for key, p in runs.items()} for _ in range(options.rounds + 1)][
        1:
    ]
    rows = []
    for key, program in {"whole": whole, **runs}.items():
        row = {"loss": name, "batch": count, "program": key, "memory": program.memory}
        if key in runs:
            row["seconds"] = statistics.median(r[key] for r in rounds)
        if key in runs and "whole" in runs:
            row["ratio"] = statistics.median(r[key] / r["whole"] for r in rounds)
            if key in programs:
                row["apart"] = apart(program.found(), whole.found())
        rows.append(row)
        if isinstance(program, Peer):
            program.close()
    return rows


def draw(rows, path):
    """Memory and time over the batch, a line for each program."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, unit, factor in (
        (axes[0], "memory", "memory beside inputs and results, MiB", 2**-20),
        (axes[1], "seconds", "seconds of loss and gradient", 1.0),
    ):
        for program in dict.fromkeys(row["program"] for row in rows):
            known = [
                (r["batch"], r[name] * factor)
                for r in rows
                if r["program"] == program and r.get(name)
            ]
            if known:
                axis.plot(*zip(*known, strict=True), marker="o", label=program)
        axis.set(xscale="log", yscale="log", xlabel="batch, pairs", title=unit)
        batches = sorted({row["batch"] for row in rows})
        axis.set_xticks(batches, [f"{b:,}" for b in batches])
        axis.minorticks_off()
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{rows[0]['loss']} loss with its gradient")
    figure.savefig(path, dpi=110)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", default="contrastive,sigmoid,distillation")
    parser.add_argument("--batches", default="8192")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--blocks", default="21,22,23,24", help="logarithms of logits in a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--whole", type=int, default=8192, help="run the whole matrix up to this batch"
    )
    parser.add_argument("--peer", help="Python with open_clip: .venv-peer/bin/python")
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--picture", help="file for a plot of one loss over batches")
    options = parser.parse_args()
    options.blocks = [int(b) for b in options.blocks.split(",")]
    table = Table("loss", "batch", "program", "memory, MiB", "seconds", "of whole", "apart")
    rows = []
    for name in options.losses.split(","):
        for count in map(int, options.batches.split(",")):
            for row in measure(name, count, options):
                rows.append(row)
                memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:,.0f}"
                seconds, ratio = (
                    f"{row[key]:.2f}" if key in row else "" for key in ("seconds", "ratio")
                )
                off = f"{row['apart']:.1e}" if "apart" in row else ""
                table.add_row(name, f"{count:,}", row["program"], memory, seconds, ratio, off)
    Console().print(table)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
