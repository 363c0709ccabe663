"""What each masker costs a step, beside the random one: FLOPs, bytes and time at a tower's real shapes.

    python benchmarks/masker_cost.py --size L --batch 2 --rounds 5    # on a laptop
    python benchmarks/masker_cost.py --size L --batch 256 --dtype mixed_bfloat16    # on an accelerator
    python benchmarks/masker_cost.py --size L --dtype mixed_bfloat16 --topology v5e:2x2    # for a TPU

The program is the loss and its gradient, without an optimizer, whose part would only hide differences.
FLOPs and bytes are XLA's counts for the compiled program. Programs are timed in turn, round by round, and
ratios taken within a round. With `--topology` they are compiled for a chip of a TPU that needn't be there
and not timed; that takes the package `libtpu` (`pip install 'jax[tpu]'`).
"""

import argparse
import time
from typing import Any

import flipkit  # first: it chooses Keras's backend

# isort: split
import jax
import keras
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.progress import track
from rich.table import Table
from step_time import SIZES

from flipkit import maskers, plugins, settings
from flipkit.process import take_huge_pages


class Gradient:
    """Loss and gradient of a model with a masker, compiled; the weights are shared by all maskers.

    With a `device` of a topology it is compiled for that, and can't be called.
    """

    def __init__(self, size, name, ratio, batch, dtype, weights=None, device=None):
        pixels, patch, image, text, length, vocab = SIZES[size]
        self.name = name
        model = flipkit.FLIP(
            flipkit.ViT(pixels, patch, *image, dtype=dtype),
            flipkit.TextTransformer(vocab, length, *text, dtype=dtype),
            masker=masker_of(name),
            mask_ratio=ratio,
            dim=image[0],
            dtype=dtype,
        )
        model.build()
        self.weights = weights or [v.value for v in model.trainable_variables]
        own = [v.value for v in model.non_trainable_variables]
        rng = np.random.default_rng(0)
        self.batch = {
            "image": jax.device_put(rng.integers(0, 256, (batch, pixels, pixels, 3), "uint8")),
            "text": jax.device_put(rng.integers(1, vocab, (batch, length), "int32")),
        }
        contrast = flipkit.ContrastiveLoss()

        def loss(weights, own, batch):
            found, own = model.stateless_call(weights, own, batch, training=True)
            return contrast(found["image"], found["text"], 1 / 0.07), own

        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        inputs = self.weights, own, self.batch
        if device is not None:
            place = SingleDeviceSharding(device)
            inputs = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), inputs
            )
        self.program = program.lower(*inputs).compile()
        self.own, counts = own, self.program.cost_analysis()
        self.flops, self.bytes = counts["flops"], counts["bytes accessed"]
        for variable in model.trainable_variables:
            variable._value = None  # its memory is that of the first model's

    def seconds(self):
        """Of one call."""
        start = time.perf_counter()
        jax.block_until_ready(self.program(self.weights, self.own, self.batch))
        return time.perf_counter() - start


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--topology", help="compile for a TPU, such as v5e:2x2, and time nothing")
    parser.add_argument(
        "--maskers",
        help="such as random,attentive:shrink=2; all installed that can mask images if not given",
    )
    options = parser.parse_args()
    names = options.maskers.split(",") if options.maskers else plugins.names("maskers")
    if not options.maskers:
        names = [n for n in names if "words" not in maskers.get(n).needs]
    names = ["random", *(name for name in names if name != "random")]
    device = None
    if options.topology:
        device = topologies.get_topology_desc(options.topology, "tpu").devices[0]
    sizes = (options.ratio, options.batch, options.dtype)
    programs, weights = [], None
    for name in track(names, "compiling", transient=True):
        programs.append(Gradient(options.size, name, *sizes, weights=weights, device=device))
        weights = programs[0].weights
    base = programs[0]
    columns = {
        "FLOPs": [f"{program.flops / base.flops:.4f}" for program in programs],
        "bytes": [f"{program.bytes / base.bytes:.4f}" for program in programs],
    }
    if device is None:
        columns |= timed(programs, options.rounds)
    where = (device or jax.devices()[0]).device_kind
    title = (
        f"{options.size}, mask ratio {options.ratio:g}, batch {options.batch}, {options.dtype}, "
    )
    table = Table("masker", *columns, title=title + where, caption="Ratios to the random masker.")
    for row in zip(names, *columns.values(), strict=True):
        table.add_row(*row)
    Console(width=110).print(table)
    print(f"keras {keras.__version__}, jax {jax.__version__}")


def masker_of(word):
    """`attentive:shrink=2` -> the masker of that name with that setting."""
    name, *own = word.split(":")
    told = (setting.partition("=") for setting in own)
    make: Any = plugins.component("maskers", name)
    return make(**{setting: settings.parse(text) for setting, _, text in told})


def timed(programs, rounds):
    """{column: cells} of times relative to the first program's, and in milliseconds."""
    times = []
    for _ in track(range(rounds + 1), "timing", transient=True):
        times.append([program.seconds() for program in programs])
    times = np.array(times[1:])  # the first round warms up
    low, median, high = np.quantile(times / times[:, :1], (0.25, 0.5, 0.75), axis=0)
    return {
        f"time, {rounds} rounds": [f"{ratio:.3f}" for ratio in median],
        "quarter to quarter": [f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True)],
        "ms": [f"{1e3 * t:,.1f}" for t in np.median(times, axis=0)],
    }


if __name__ == "__main__":
    take_huge_pages()
    main()
