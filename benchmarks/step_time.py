"""Time of a training step at mask 0, 0.5 and 0.75, the optimizer apart, beside the FLOPs: `make bench`.

    python benchmarks/step_time.py --size tiny          # flip_small's towers, on a laptop
    python benchmarks/step_time.py --size B --dtype mixed_bfloat16 --batch 256    # on an accelerator

Programs are timed in turn, round by round, and ratios taken within a round, so that a machine whose
speed drifts gives the same ratios. FLOPs are those that XLA counts in the compiled program.
"""

import argparse
import functools
import statistics
import time

import flipkit  # first: it chooses Keras's backend

# isort: split
import jax
import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from flipkit.process import take_huge_pages

SIZES = {  # image size, patch, (dim, depth, heads) of the image and text towers, text length, vocab
    "tiny": (64, 8, (128, 4, 4), (64, 2, 2), 12, 4096),
    "B": (224, 16, (768, 12, 12), (512, 12, 8), 32, 30_522),
    "L": (224, 16, (1024, 24, 16), (768, 12, 12), 32, 30_522),
}
RATIOS = (0.0, 0.5, 0.75)


def flip(size, ratio, dtype, activation="gelu_tanh", impl="auto", remat="none"):
    """A FLIP with the towers that SIZES names.

    Args:
        size: key of SIZES.
        ratio: share of patches that training drops.
        activation, impl, remat: as in `flipkit.ViT`.
    """
    pixels, patch, image, text, length, vocab = SIZES[size]
    blocks = {"activation": activation, "impl": impl, "remat": remat, "dtype": dtype}
    return flipkit.FLIP(
        flipkit.ViT(pixels, patch, *image, **blocks),
        flipkit.TextTransformer(vocab, length, *text, **blocks),
        mask_ratio=ratio,
        dim=image[0],
        dtype=dtype,
    )


class Program:
    """A compiled step of a model and its state, on a batch of noise.

    Args:
        model: `flipkit.FLIP`. The steps take its memory: it has no weights afterwards.
        pairs: size of the batch.
        optimizer: None is `flipkit.AdamW()`.
    """

    def __init__(self, model, pairs, optimizer=None):
        start = time.perf_counter()
        self.model = model
        self.model.compile(optimizer or flipkit.AdamW())
        self.model.optimizer.build(self.model.trainable_variables)
        pixels, texts = model.image.image_size, model.text
        rng = np.random.default_rng(0)
        self.batch = {
            "image": jax.device_put(rng.integers(0, 256, (pairs, pixels, pixels, 3), "uint8")),
            "text": jax.device_put(rng.integers(1, texts.vocab, (pairs, texts.length), "int32")),
        }
        names = ("trainable_variables", "non_trainable_variables")
        weights = [[v.value for v in getattr(self.model, name)] for name in names]
        optimizer = [v.value for v in self.model.optimizer.variables]
        metrics = [v.value for v in self.model.metrics_variables]
        self.state = (*weights, optimizer, metrics)
        self.logs = {}  # of the latest step
        built = time.perf_counter()
        # A step writes the new state over the old one, as in `fit`.
        step = jax.jit(self.model.train_step, donate_argnums=0)
        self.step = step.lower(self.state, (self.batch,)).compile()
        self.build_seconds = built - start
        self.compile_seconds = time.perf_counter() - built
        self.flops = self.step.cost_analysis()["flops"]

    @property
    def memory(self):
        """Bytes on the device by XLA's account: state, batch, and what a step holds meanwhile."""
        known = self.step.memory_analysis()
        kept = known.argument_size_in_bytes + known.output_size_in_bytes - known.alias_size_in_bytes
        return kept + known.temp_size_in_bytes

    @functools.cached_property
    def _update(self):
        """The optimizer's part alone: the compiled function and a gradient."""
        trainable, _, optimizer, _ = self.state
        gradient = jax.tree.map(jax.numpy.zeros_like, trainable)
        update = jax.jit(self.model.optimizer.stateless_apply)
        return update.lower(optimizer, gradient, trainable).compile(), gradient

    def time_step(self, steps=1):
        """Seconds of a whole step: the mean of `steps`, without a wait between them."""

        def run():
            for _ in range(steps):
                self.logs, self.state = self.step(self.state, (self.batch,))
            return self.state

        return self._seconds(run) / steps

    def time_update(self):
        """Seconds of the optimizer's part."""
        update, gradient = self._update
        return self._seconds(lambda: update(self.state[2], gradient, self.state[0]))

    @staticmethod
    def _seconds(call):
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    programs = {r: Program(flip(options.size, r, options.dtype), options.batch) for r in RATIOS}
    times = {r: [] for r in RATIOS}
    updates = {r: [] for r in RATIOS}
    for round in range(options.rounds + 2):
        for ratio, program in programs.items():
            seconds, update = program.time_step(), program.time_update()
            if round >= 2:  # the first two warm up
                times[ratio].append(seconds)
                updates[ratio].append(update)
    title = (
        f"{options.size}, batch {options.batch}, {options.dtype}, {jax.devices()[0].device_kind}"
    )
    table = Table(
        "mask", "step ms", "optimizer ms", "pairs/s", "time ratio", "without optimizer", "FLOPs ratio",
        "of the promised speed-up", title=title,
    )  # fmt: skip
    base, base_update = times[0.0], updates[0.0]
    for ratio, program in programs.items():
        step = statistics.median(times[ratio])
        paired = statistics.median(a / b for a, b in zip(times[ratio], base, strict=True))
        apart = statistics.median(
            (a - u) / (b - v)
            for a, u, b, v in zip(times[ratio], updates[ratio], base, base_update, strict=True)
        )
        flops = program.flops / programs[0.0].flops
        arrived = (1 / paired) / (1 / flops)
        table.add_row(
            f"{ratio:g}",
            f"{1e3 * step:.1f}",
            f"{1e3 * statistics.median(updates[ratio]):.1f}",
            f"{options.batch / step:,.0f}",
            f"{paired:.3f}",
            f"{apart:.3f}",
            f"{flops:.3f}",
            f"{arrived:.0%}",
        )
    Console(width=130).print(table)
    print(f"keras {keras.__version__}, jax {jax.__version__}, medians of {options.rounds} rounds")


if __name__ == "__main__":
    take_huge_pages()
    main()
