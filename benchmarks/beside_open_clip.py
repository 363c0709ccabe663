"""flipkit's training step beside open_clip's: the same towers, batch and mask ratio, turn by turn.

    make .venv-peer     # open_clip and torch, in an environment of their own
    python benchmarks/beside_open_clip.py --size tiny
    python benchmarks/beside_open_clip.py --size B --dtype mixed_bfloat16 --batch 256   # on an accelerator

Each round takes one step of each on data that lies ready, so that a machine whose speed drifts drifts for
both; the ratio is the median of the rounds' ratios. Each runs as it ships: open_clip eager, with its exact
GELU and normalised float pixels; flipkit compiled, from uint8 pixels, which it normalises and masks itself.
"""

import argparse
import json
import os
import pathlib
import statistics

from peer import Peer
from rich.console import Console
from rich.table import Table
from step_time import RATIOS, SIZES, Program, flip

from flipkit.process import take_huge_pages

PEER = pathlib.Path(__file__).with_name("open_clip_step.py")


def described(size, ratio, batch, dtype, **more):
    """What open_clip_step.py reads of a model, a batch and how to run them."""
    names = ("pixels", "patch", "image", "text", "length", "vocab")
    towers = dict(zip(names, SIZES[size], strict=True))
    return towers | {"mask_ratio": ratio, "batch": batch, "dtype": dtype, **more}


def open_clip(python, described, environment=None):
    """A process that trains with open_clip, one step at a time."""
    return Peer(python, PEER, json.dumps(described), environment=environment)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--activation", default="gelu_tanh", help="flipkit's; open_clip has GELU")
    parser.add_argument("--peer", default=".venv-peer/bin/python", help="Python with open_clip")
    parser.add_argument(
        "--huge-pages", action="store_true", help="give open_clip the huge pages that flipkit takes"
    )
    options = parser.parse_args()
    environment = dict(os.environ)
    if not options.huge_pages:  # flipkit's programs ask for them, open_clip's don't
        environment.pop("GLIBC_TUNABLES", None)
    table = Table(
        "mask", "flipkit pairs/s", "open_clip pairs/s", "ratio", "ratios, quartiles",
        title=f"{options.size}, batch {options.batch}, {options.dtype}, {options.activation}",
    )  # fmt: skip
    for ratio in RATIOS:
        model = flip(options.size, ratio, options.dtype, options.activation)
        mine = Program(model, options.batch)
        theirs = open_clip(
            options.peer, described(options.size, ratio, options.batch, options.dtype), environment
        )
        rounds = [(mine.time_step(), theirs.time_step()) for _ in range(options.rounds + 2)][2:]
        theirs.close()
        ratios = [b / a for a, b in rounds]
        a, b = (options.batch / statistics.median(times) for times in zip(*rounds, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            f"{ratio:g}", f"{a:,.0f}", f"{b:,.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    take_huge_pages()
    main()
