"""What each masker costs a step, beside the random one: FLOPs, bytes and time at a tower's real shapes.

    python benchmarks/masker_cost.py --size L --batch 2 --rounds 5        # on a laptop
    python benchmarks/masker_cost.py --size L --dtype mixed_bfloat16 --batch 256    # on an accelerator

The program is the loss and its gradient, without an optimizer, whose part would only hide differences.
FLOPs and bytes are XLA's counts for the compiled program. Programs are timed in turn, round by round, and
ratios taken within a round.
"""

import argparse
import statistics
import time

import flipkit  # first: it chooses Keras's backend

# isort: split
import jax
import keras
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from step_time import SIZES

from flipkit import maskers, plugins
from flipkit.process import take_huge_pages


class Gradient:
    """Loss and gradient of a model with a masker, compiled; the weights are shared by all maskers."""

    def __init__(self, size, name, ratio, batch, dtype, weights=None):
        pixels, patch, image, text, length, vocab = SIZES[size]
        self.name = name
        model = flipkit.FLIP(
            flipkit.ViT(pixels, patch, *image, dtype=dtype),
            flipkit.TextTransformer(vocab, length, *text, dtype=dtype),
            masker=name,
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

        program = jax.value_and_grad(loss, has_aux=True)
        self.program = jax.jit(program).lower(self.weights, own, self.batch).compile()
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
    parser.add_argument("--maskers", help="names; all installed that can mask images if not given")
    options = parser.parse_args()
    names = options.maskers.split(",") if options.maskers else plugins.names("maskers")
    if not options.maskers:
        names = [n for n in names if "words" not in maskers.get(n).needs]
    names = ["random", *(name for name in names if name != "random")]
    sizes = (options.ratio, options.batch, options.dtype)
    programs, weights = [], None
    for name in track(names, "compiling", transient=True):
        programs.append(Gradient(options.size, name, *sizes, weights=weights))
        weights = programs[0].weights
    times = {program.name: [] for program in programs}
    for round in track(range(options.rounds + 1), "timing", transient=True):
        for program in programs:
            seconds = program.seconds()
            if round:  # the first warms up
                times[program.name].append(seconds)
    title = (
        f"{options.size}, mask ratio {options.ratio:g}, batch {options.batch}, {options.dtype}, "
    )
    table = Table(
        "masker", "FLOPs", "bytes", "time", "quarter to quarter", "ms",
        title=title + jax.devices()[0].device_kind, caption="Ratios to the random masker.",
    )  # fmt: skip
    base = programs[0]
    for program in programs:
        ratios = [a / b for a, b in zip(times[program.name], times[base.name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            program.name,
            f"{program.flops / base.flops:.4f}",
            f"{program.bytes / base.bytes:.4f}",
            f"{statistics.median(ratios):.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{1e3 * statistics.median(times[program.name]):,.1f}",
        )
    Console(width=110).print(table)
    print(f"keras {keras.__version__}, jax {jax.__version__}, {options.rounds} rounds")


if __name__ == "__main__":
    take_huge_pages()
    main()
