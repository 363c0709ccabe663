"""How fast samples come on one core: python benchmarks/datasets.py ['/data/shards/*.tar'].

Prints scenes/s of the captioned shapes, and for shards the time to open them, samples/s and MB/s in
order and in random order (bytes as they lie in the tar, nothing decoded).
"""

import random
import sys
import time

from flipkit.datasets import CaptionedShapes, ImageTextShards

COUNT = 5_000  # samples measured


def rate(read, order):
    """Calls per second of `read` over `order`, and what it returned."""
    start = time.perf_counter()
    found = [read(i) for i in order]
    return len(order) / (time.perf_counter() - start), found


def main(path=None):
    """Measures the shapes and, if given, the shards at `path`."""
    shapes = CaptionedShapes()
    rate(shapes.__getitem__, range(COUNT))  # draws every stamp once
    print(f"captioned_shapes        {rate(shapes.__getitem__, range(COUNT))[0]:9,.0f} scenes/s")
    print(f"captioned_shapes, texts {rate(shapes.texts, range(COUNT))[0]:9,.0f} scenes/s")
    if path is None:
        return
    start = time.perf_counter()
    data = ImageTextShards(path)
    opened = f"{len(data):,} samples opened in {time.perf_counter() - start:.2f} s"
    print(f"{path}: {opened}")
    in_order = range(min(COUNT, len(data)))
    for name, order in (
        ("in order", in_order),
        ("at random", random.Random(0).sample(range(len(data)), len(in_order))),
    ):
        speed, samples = rate(data.__getitem__, order)
        size = sum(len(sample["image"]) for sample in samples) / len(samples)
        print(f"shards, {name:10}      {speed:9,.0f} samples/s, {speed * size / 1e6:,.1f} MB/s")
    print(f"shards, texts           {rate(data.texts, in_order)[0]:9,.0f} samples/s")


if __name__ == "__main__":
    main(*sys.argv[1:2])
