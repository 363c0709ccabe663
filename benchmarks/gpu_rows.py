"""Measures one row of gpu.py's table, in a process of its own: its peak of memory is then the row's own.

The first argument is JSON, a row as gpu.py plans it. The second is the file for what is found, which is
written again whenever more is known, so that a process that is stopped leaves something.
"""

import gc
import json
import os
import statistics
import sys

import flipkit  # first: it chooses Keras's backend
from flipkit import process

if os.environ.get("JAX_PLATFORMS") == "cpu":
    process.skip_fusion_emitters()  # before JAX starts

# isort: split
from typing import Any

import jax
import keras
import loss
from beside_open_clip import described, open_clip
from peer import PeerEnded
from step_time import SIZES, Program, flip

from flipkit import files
from flipkit.layers import kernels
from flipkit.losses import blocks
from flipkit.planning import Towers, chips

WARM_UPS = 2  # calls that are not counted
# Sizes for a CPU, under names of their own; equal, so that the second is compiled already.
_SMALL = (16, 4, (16, 1, 2), (16, 1, 2), 6, 64)
DRY = {"dry B": _SMALL, "dry L": _SMALL}


def recipe(row, note):
    """Steps of flip_vitl's model and optimizer, remat as in the recipe, on one batch of noise."""
    program = Program(flip_vitl(row), row["batch"], flip_vitl_optimizer(row["rate"]))
    note(build_seconds=program.build_seconds, compile_seconds=program.compile_seconds)
    seconds, losses = [], []
    for _ in range(row["steps"]):
        seconds.append(program.time_step())
        losses.append(float(program.logs["loss"]))
        note(losses=losses, first_step_seconds=seconds[0], peak=peak(), memory=program.memory)
    note(
        step_seconds=statistics.median(seconds),
        finite=all(abs(value) < float("inf") for value in losses),
        falls=losses[-1] < losses[0],
    )


def flip_vitl(row):
    """The model of recipes/flip_vitl.py, without a tokenizer. A test compares it with the recipe's.

    The recipe itself makes a run, which imports Grain and Orbax: 30 MB of wheels that no step needs.
    """
    pixels, patch, image, text, length, vocab = SIZES[row["size"]]
    blocks: dict[str, Any] = {"dtype": "mixed_bfloat16", "remat": "block"}
    return flipkit.FLIP(
        flipkit.ViT(pixels, patch, *image, **blocks),
        flipkit.TextTransformer(vocab, length, *text, **blocks),
        mask_ratio=0.5,
        dim=text[0],
        dtype="mixed_bfloat16",
    )


def flip_vitl_optimizer(rate):
    """The recipe's, with one rate for all steps."""
    no_decay = ["bias", "gamma", "beta", "position"]
    return flipkit.AdamW(rate, beta_1=0.9, beta_2=0.95, weight_decay=0.2, no_decay=no_decay)


def train(row, note):
    """A training step, beside open_clip's in turns."""
    size, ratio, batch, dtype = row["size"], row["mask_ratio"], row["batch"], row["dtype"]
    theirs = None
    if row["peer"]:
        how = {"compile": row["compile"], "needs_cuda": row["needs_cuda"]}
        theirs = open_clip(row["peer"], described(size, ratio, batch, dtype, **how))
        theirs.ask()  # it compiles while JAX compiles
    counted = Towers(flip(size, ratio, dtype)).training(ratio)
    note(flops=sum(counted.values()))  # of a pair; without remat's second forward pass
    mine = Program(flip(size, ratio, dtype, remat=row["remat"]), batch)
    note(build_seconds=mine.build_seconds, compile_seconds=mine.compile_seconds, memory=mine.memory)
    warm_up(mine)
    seconds = [mine.time_step(row["steps"]) for _ in range(row["rounds"])]
    note(rate=batch / statistics.median(seconds), peak=peak())
    if theirs is None:
        return
    try:
        note(open_clip=beside(mine, theirs, row, note))
    except PeerEnded as ended:
        note(open_clip={"absent": str(ended)})


def beside(mine, theirs, row, note):
    """Rounds of flipkit and the peer in turn; returns what is found of the peer."""
    theirs.answer()  # the step that compiled
    theirs.time_step()
    steps, batch = row["steps"], row["batch"]
    rounds = [(mine.time_step(steps), theirs.time_step(steps)) for _ in range(row["rounds"])]
    theirs.close()
    a, b = (batch / statistics.median(times) for times in zip(*rounds, strict=True))
    note(rate=a)  # in place of the one found while the peer compiled
    known = {name: theirs.latest[name] for name in ("peak", "torch", "compiled")}
    return {"rate": b, "ratio": statistics.median(t / m for m, t in rounds), **known}


def contrastive(row, note):
    """The loss with its gradient, in blocks, and in one piece where that fits."""
    blocks.BLOCK = row["block"] or blocks.BLOCK
    parts = loss.Program("contrastive", row["pairs"], row["dim"], blocks.BLOCK)
    warm_up(parts)
    seconds = statistics.median(parts.time_step() for _ in range(row["rounds"]))
    note(blocks={"seconds": seconds, "memory": parts.memory, "peak": peak()})
    try:
        whole = loss.Program("contrastive", row["pairs"], row["dim"], 1 << 62)
        warm_up(whole)
    except jax.errors.JaxRuntimeError as error:
        note(whole={"absent": out_of_memory(error)})
        return
    rounds = [(parts.time_step(), whole.time_step()) for _ in range(row["rounds"])]
    seconds = [statistics.median(times) for times in zip(*rounds, strict=True)]
    note(
        blocks={"seconds": seconds[0], "memory": parts.memory},
        whole={"seconds": seconds[1], "memory": whole.memory, "peak": peak()},
        ratio=statistics.median(a / b for a, b in rounds),
    )


def attention(row, note):
    """A training step with each implementation of attention, in turns."""
    programs, found = {}, {}
    dims = SIZES[row["size"]][2]
    note(kernel=kernels.has_kernel("bfloat16", dims[0] // dims[2]))
    for impl in ("auto", "einsum", "fused"):
        try:
            model = flip(row["size"], row["mask_ratio"], row["dtype"], impl=impl)
            programs[impl] = Program(model, row["batch"])
            warm_up(programs[impl])
        except jax.errors.JaxRuntimeError as error:
            programs.pop(impl, None)
            found[impl] = {"absent": out_of_memory(error)}
    rounds = [
        {impl: program.time_step(row["steps"]) for impl, program in programs.items()}
        for _ in range(row["rounds"])
    ]
    for impl, program in programs.items():
        seconds = statistics.median(times[impl] for times in rounds)
        found[impl] = {"rate": row["batch"] / seconds, "memory": program.memory}
        if "auto" in programs:
            found[impl]["of_auto"] = statistics.median(t["auto"] / t[impl] for t in rounds)
    note(implementations=found)


def largest(row, note):
    """The largest batch whose step the device has room for."""
    refused = []

    def fits(batch):
        if row["ceiling"] and batch > row["ceiling"]:
            return False
        try:
            model = flip(row["size"], row["mask_ratio"], row["dtype"], remat=row["remat"])
            Program(model, batch).time_step()
        except jax.errors.JaxRuntimeError as error:
            out_of_memory(error)
            refused.append(batch)
            note(refused=refused)
            return False
        finally:
            gc.collect()  # a model refers to itself
        note(largest=batch, peak=peak())
        return True

    note(largest=search(fits, row["batch"], row["share"]), whole_search=True)


def search(fits, start, share):
    """The largest number that `fits`, to within a `share` of it: by doubling, then by bisecting.

    Returns 0 if `start` doesn't fit.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while low and high - low > max(low * share, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def warm_up(program):
    """Calls that are not counted."""
    for _ in range(WARM_UPS):
        program.time_step()


def out_of_memory(error):
    """The first line of JAX's error, if the device has no room; raises any other one."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return str(error).partition("\n")[0]


def peak():
    """The most bytes that this process has held on the device; None where JAX doesn't count them."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


ROWS = {f.__name__: f for f in (recipe, train, contrastive, attention, largest)}


def main():
    """Measures the row and writes what is found."""
    row, path, found = json.loads(sys.argv[1]), sys.argv[2], {}
    SIZES.update(DRY)

    def note(**more):
        found.update(more)
        files.write_json(path, found)

    device = jax.devices()[0]
    chip = chips.of_kind(device.device_kind)
    note(
        card_flops=chip and chip.device_flops,
        card_source=chip.source if chip else f"no table has a {device.device_kind}: give --peak",
        device=device.device_kind,
        limit=(device.memory_stats() or {}).get("bytes_limit"),
        versions={m.__name__: m.__version__ for m in (flipkit, jax, keras)},
    )
    ROWS[row["kind"]](row, note)


if __name__ == "__main__":
    main()
