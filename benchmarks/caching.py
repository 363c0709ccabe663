"""How far the gradient of micro-batches is from that of the whole batch, beside open_clip's `--accum-freq`.

    make .venv-peer/.installed     # open_clip and torch, in an environment of their own
    python benchmarks/caching.py --peer .venv-peer/bin/python

Distances are norms of the difference, as shares of the norm of the whole batch's gradient of both towers.
"""

import argparse
import json
import pathlib
import subprocess

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import flipkit

PEER = pathlib.Path(__file__).with_name("open_clip_accum.py")
SIZE = {"dim": 64, "depth": 3, "heads": 4, "pixels": 64, "patch": 8, "length": 16, "vocab": 512}
PARTS = (2, 4, 8)


def distances(ratio, batch):
    """{number of micro-batches: distance} of flipkit's gradient, with the same masks by construction."""
    tower = SIZE["dim"], SIZE["depth"], SIZE["heads"]
    model = flipkit.FLIP(
        flipkit.ViT(SIZE["pixels"], SIZE["patch"], *tower),
        flipkit.TextTransformer(SIZE["vocab"], SIZE["length"], *tower),
        mask_ratio=ratio,
        dim=SIZE["dim"],
    )
    rng = np.random.default_rng(0)
    x = {
        "image": rng.integers(0, 256, (batch, SIZE["pixels"], SIZE["pixels"], 3), "uint8"),
        "text": rng.integers(1, SIZE["vocab"], (batch, SIZE["length"]), "int32"),
    }

    def gradient(parts):
        model.compile("sgd", microbatch=None if parts == 1 else batch // parts)
        model.optimizer.build(model.trainable_variables)
        names = ("trainable_variables", "non_trainable_variables", "metrics_variables")
        values = [[v.value for v in getattr(model, name)] for name in names]
        own = [v.value for v in model.optimizer.variables]
        step = model.loss_and_gradient()
        given = {"training": True, "optimizer_variables": own}
        program = jax.jit(lambda a, b, c: step(a, b, c, x, None, None, **given))
        _, found = program(*values)
        known = zip(model.trainable_variables, found, strict=True)
        return np.concatenate([np.ravel(g) for v, g in known if v.name != "logit_scale"])

    whole = gradient(1)
    return {n: float(np.linalg.norm(gradient(n) - whole) / np.linalg.norm(whole)) for n in PARTS}


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask_ratio", type=float, default=0.75)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peer", help="Python with open_clip; without it, flipkit alone")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    options = parser.parse_args()
    rows = [
        {"parts": n, "flipkit": d} for n, d in distances(options.mask_ratio, options.batch).items()
    ]
    if options.peer:
        size = {**SIZE, "mask_ratio": options.mask_ratio, "batch": options.batch, "parts": PARTS}
        command = [options.peer, str(PEER), json.dumps(size)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = [json.loads(line) for line in lines.splitlines()]
        rows = [{**row, **other} for row, other in zip(rows, found, strict=True)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    table = Table("micro-batches", *[name for name in rows[0] if name != "parts"])
    for row in rows:
        table.add_row(str(row.pop("parts")), *(f"{value:.1e}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
