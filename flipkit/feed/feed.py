"""The settings that turn samples into batches; `open` returns the batches."""

import math

from flipkit.checks import as_seed
from flipkit.errors import ConfigurationError, DataError, nearest
from flipkit.feed.batches import Batches
from flipkit.feed.readers import READERS
from flipkit.feed.stream import Slots
from flipkit.registry import Configurable, register


@register
class Feed(Configurable):
    """The settings that turn samples into batches; `open` returns the batches.

    Pixels stay uint8: they become numbers on the device. Every random choice about a sample depends
    on (seed, its slot in the stream) alone, so that the batches are the same with any number of
    threads, workers and restarts. The stream goes through the data again and again, each time in
    another order. A bad sample keeps its slot: another sample replaces it, and the feed records it.

    Args:
        crop: smallest and largest share of the area that a random resized crop keeps, FLIP's
            (0.5, 1.0); None takes the largest centre square.
        ratio: least and largest width/height of the crop.
        flip: whether half of the pictures are mirrored.
        augment: `flipkit.Augment`, the change to the crop, or None.
        captions: "random" takes any of a sample's texts each time, "first" always the first; a
            number in [0, 1] is the chance of the first, the others sharing the rest.
        block: samples that are read together. 1 shuffles all samples, right for local discs; more
            shuffles blocks of neighbours, then samples within a window of `window` blocks.
        window: blocks.
        bad_limit: largest share of bad samples before the feed stops with a summary.
        threads: batches made at the same time in each process.
        workers: processes; 0 makes batches in threads of this one.
    """

    def __init__(
        self,
        *,
        crop=(0.5, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip=True,
        augment=None,
        captions="random",
        block=1,
        window=64,
        bad_limit=0.01,
        threads=2,
        workers=0,
    ):
        self.crop, self.ratio, self.flip = crop, ratio, flip
        self.augment, self.captions = augment, captions
        self.block, self.window = block, window
        self.bad_limit, self.threads, self.workers = bad_limit, threads, workers
        if crop is not None and not _is_range(crop, 1):
            raise ConfigurationError(
                "Expected the least and the largest share of the area, two numbers in (0, 1], or "
                f"None. Received: {crop=}"
            )
        if not _is_range(ratio, math.inf):
            raise ConfigurationError(
                "Expected the least and the largest width/height, two numbers above 0. "
                f"Received: {ratio=}"
            )
        if augment is not None and not callable(augment):
            raise ConfigurationError(
                "Expected augment=flipkit.Augment(), or another call of a picture and a generator. "
                f"Received: {augment=}"
            )
        if captions not in ("random", "first") and not _is_share(captions):
            hint = f" {nearest(captions, ('random', 'first'))}" if isinstance(captions, str) else ""
            raise ConfigurationError(
                f"Expected captions 'random', 'first' or a chance in [0, 1].{hint} "
                f"Received: {captions=}"
            )
        if not _is_share(bad_limit):
            raise ConfigurationError(f"Expected a share in [0, 1]. Received: {bad_limit=}")
        counts = {"block": block, "window": window, "threads": threads, "workers": workers}
        for name, value in counts.items():
            least = 0 if name == "workers" else 1
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"Expected a whole number of at least {least}. Received: {name}={value!r}"
                )

    def open(
        self,
        data,
        model,
        batch_size,
        *,
        seed=0,
        first=0,
        image_size=None,
        process=0,
        processes=1,
    ) -> "Batches":
        """The batches of `data` for `model`.

        Args:
            data: a `flipkit.Dataset`, or anything with `len(data)` and `data[i]`.
            model: `flipkit.models.Trainable`: its preprocessing resizes pictures, and its `reads` sets
                the second input: "text", ids that its tokenizer makes, "label", the samples' own, "view",
                another crop of the same picture, or None, nothing.
            batch_size: pairs per batch.
            seed: int of 64 bits, of which the order and every other random choice are functions.
            first: slot of the stream that the first batch begins with: pairs used before.
            image_size: pixels of the pictures, one side or (height, width); None is the size of
                training, as in `FLIP(image_size=...)`, else the image tower's own.
            process, processes: which part of each batch to read, and of how many: with 2, number 0 reads
                the first half of its rows. A run on several hosts sets them.

        Raises:
            ConfigurationError: the model can't read such batches, `seed` is no seed, or the batch has no
                such parts.
            DataError: the data can't be read, or has fewer samples than a batch.
        """
        if model.reads is not None and model.reads not in READERS:
            raise ConfigurationError(
                f"A batch can't hold {model.reads!r}. {nearest(model.reads, READERS)}"
            )
        reader = None if model.reads is None else READERS[model.reads].of(model, self)
        count = len(data)
        if not 0 <= process < processes or batch_size % processes:
            raise ConfigurationError(
                "Expected a part of a batch whose rows can be split equally. Received: "
                f"{process=} of {processes=}, batch_size={batch_size:,}"
            )
        if batch_size > count:
            raise DataError(
                f"A batch can't be larger than the data. Received: batch_size={batch_size:,} and "
                f"{count:,} samples. Set a smaller batch_size, or more data."
            )
        slots = Slots(
            feed=self,
            data=data,
            count=count,
            reader=reader,
            image_size=image_size or getattr(model, "image_size", None) or model.image.image_size,
            interpolation=model.preprocessing.interpolation,
            seed=as_seed(seed),
        )
        rows = batch_size // processes
        return Batches(slots, batch_size, first, range(process * rows, (process + 1) * rows))


def _is_share(value):
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _is_range(value, most):
    """Whether `value` is two finite numbers above 0 and up to `most`, the smaller one first."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    numbers = all(isinstance(number, (int, float)) for number in value)
    return numbers and 0 < value[0] <= value[1] <= most and value[1] < math.inf
