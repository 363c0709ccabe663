"""From samples to batches on the host: `batch(step)` is a pure function of (seed, step)."""

import dataclasses
import functools
import math
from typing import Any

import absl.flags
import grain
import numpy as np
from absl import logging

from flipkit import preprocessing
from flipkit.datasets.dataset import label_of
from flipkit.errors import BadSample, ConfigurationError, DataError, nearest
from flipkit.registry import Configurable, register
from flipkit.seeds import checked_seed

ATTEMPTS = 100  # replacements tried for one bad sample
ENOUGH = 1_000  # samples before the share of bad ones means something
_SHUFFLE_ROUNDS = 4  # as grain's own MapDataset.shuffle


@register
class Feed(Configurable):
    """How samples become batches. It describes; `open` makes the batches.

    Pixels stay uint8: they become numbers on the device. Every random choice about a sample depends
    on (seed, its slot in the stream) alone, so that the batches are the same with any number of
    threads, workers and restarts. The stream goes through the data again and again, each time in
    another order. A bad sample keeps its slot: another takes its place, and it is recorded.

    Args:
        crop: smallest and largest share of the area that a random resized crop keeps, FLIP's
            (0.5, 1.0); None takes the largest centre square.
        ratio: least and largest width/height of the crop.
        flip: whether half of the pictures are mirrored.
        augment: `flipkit.Augment`, what is done to the crop, or None.
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

    def open(self, data, model, batch_size, *, seed=0, first=0, image_size=None) -> "Batches":
        """The batches of `data` as `model` takes them.

        Args:
            data: a `flipkit.Dataset`, or anything with `len(data)` and `data[i]`.
            model: `flipkit.FLIP` or `flipkit.Classifier`: its preprocessing tells how pictures are
                resized, and `reads` what comes beside them: "text", ids that its tokenizer makes, or
                "label", the samples' own.
            batch_size: pairs per batch.
            seed: int of 64 bits, what the order and every other random choice are functions of.
            first: slot of the stream that the first batch begins with: pairs used before.
            image_size: pixels of the pictures, one side or (height, width); None is what the model
                trains at, as `FLIP(image_size=...)` says, else its image tower's own.

        Raises:
            ConfigurationError: the model can't read such batches, or `seed` is none.
            DataError: the data can't be read, or has fewer samples than a batch.
        """
        if model.reads not in READERS:
            raise ConfigurationError(
                f"A batch can't hold {model.reads!r}. {nearest(model.reads, READERS)}"
            )
        reader = READERS[model.reads].of(model, self)
        count = len(data)
        if batch_size > count:
            raise DataError(
                f"A batch can't be larger than the data. Received: batch_size={batch_size:,} and "
                f"{count:,} samples. Set a smaller batch_size, or more data."
            )
        slots = _Slots(
            feed=self,
            data=data,
            count=count,
            reader=reader,
            image_size=image_size or getattr(model, "image_size", None) or model.image.image_size,
            interpolation=model.preprocessing.interpolation,
            seed=checked_seed(seed) % (1 << 64),  # NumPy takes no negative ones
        )
        return Batches(slots, batch_size, first)


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Token ids of one of a sample's texts."""

    tokenizer: Any
    length: int
    captions: Any  # as in Feed

    @classmethod
    def of(cls, model, feed):
        if model.tokenizer is None or not model.tokenizer.trained:
            raise ConfigurationError(
                "The model's tokenizer has no vocabulary yet. Train it, model.tokenizer.train("
                "texts, vocab), or give it a file, FLIP(tokenizer=flipkit.WordPiece('vocab.txt'))."
            )
        if model.tokenizer.vocab > model.text.vocab:
            raise ConfigurationError(
                f"The tokenizer has {model.tokenizer.vocab:,} ids, the text tower's table only "
                f"{model.text.vocab:,} rows. Set the tower's vocab to at least the former."
            )
        return cls(model.tokenizer, model.text.length, feed.captions)

    def __call__(self, sample, random):
        texts = sample["texts"]
        if not texts:
            raise BadSample("no text")
        first = {"first": 1.0, "random": 1 / len(texts)}.get(self.captions, self.captions)
        chosen = 0
        if len(texts) > 1 and random.random() >= first:
            chosen = random.integers(1, len(texts))
        return {"text": self.tokenizer([texts[chosen]], self.length)[0]}


@dataclasses.dataclass(frozen=True)
class _Labels:
    """A sample's class."""

    classes: int

    @classmethod
    def of(cls, model, feed):
        return cls(model.classes)

    def __call__(self, sample, random):
        label = label_of(sample)
        if label is None:
            raise BadSample("no label")
        if not 0 <= label < self.classes:
            raise DataError(
                f"Expected labels from 0 to {self.classes - 1}: the model tells {self.classes:,} "
                f"classes apart. Received: label={label} of {sample['id']}"
            )
        return {"label": np.int32(label)}


READERS = {"text": _Texts, "label": _Labels}  # by what a model reads beside pictures


@dataclasses.dataclass(frozen=True)
class _Slots:
    """The endless stream of samples: `slots[i]` is a function of (seed, i). Travels to workers."""

    feed: Feed
    data: Any
    count: int
    reader: Any
    image_size: int | tuple[int, int]
    interpolation: str
    seed: int

    def __len__(self):
        return 1 << 62  # grain asks; the stream has no end

    def index(self, slot: int) -> int:
        """Which sample is in `slot`: each pass over the data is a permutation of its own."""
        epoch, place = divmod(slot, self.count)
        block = self.feed.block
        if block == 1:
            return _shuffled(place, self.count, self.seed, epoch)
        # Within a window of blocks, then the blocks; the last, shorter block stays last.
        window, offset = divmod(place, block * self.feed.window)
        start = window * block * self.feed.window
        size = min(block * self.feed.window, self.count - start)
        place = start + _shuffled(offset, size, self.seed, epoch, window)
        rank, within = divmod(place, block)
        whole = self.count // block
        return (_shuffled(rank, whole, self.seed, epoch) if rank < whole else rank) * block + within

    def __getitem__(self, slot):
        rejects = []
        for attempt in range(ATTEMPTS):
            key = np.array([self.seed, slot * ATTEMPTS + attempt], "uint64")
            random = np.random.Generator(np.random.Philox(key=key))
            index = random.integers(self.count) if attempt else self.index(slot)
            try:
                return self._example(self.data[int(index)], random) | {"rejects": rejects}
            except BadSample as problem:
                rejects.append((int(slot), int(index), str(problem)))
        reasons = "\n  ".join(reason for *_, reason in rejects[:5])
        raise DataError(f"{ATTEMPTS} samples in a row can't be used, among them\n  {reasons}")

    def _example(self, sample, random):
        try:
            pixels = self._pixels(sample["image"], random)
            return {"image": pixels, **self.reader(sample, random)}
        except BadSample as problem:  # what reads a picture doesn't know whose it is
            raise BadSample(f"{sample['id']}: {problem}") from problem

    def _pixels(self, image, random):
        feed, size = self.feed, self.image_size
        image = preprocessing.decode(image, int(np.max(size)) if feed.crop is None else None)
        if feed.crop is None:
            image = preprocessing.centre_crop(image, size, self.interpolation)
        else:
            image = preprocessing.random_resized_crop(
                image, size, random, feed.crop, feed.ratio, self.interpolation
            )
        if feed.augment is not None:
            image = feed.augment(image, random)
        return image[:, ::-1] if feed.flip and random.random() < 0.5 else image


def _is_share(value):
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _is_range(value, most):
    """Whether `value` is two finite numbers above 0 and up to `most`, the smaller one first."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    numbers = all(isinstance(number, (int, float)) for number in value)
    return numbers and 0 < value[0] <= value[1] <= most and value[1] < math.inf


def _shuffled(place, count, *key):
    """Where `place` of `count` goes in the permutation that `key` names."""
    return grain.experimental.index_shuffle(place, count - 1, _permutation(key), _SHUFFLE_ROUNDS)


@functools.lru_cache(1024)
def _permutation(key):
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _collate(examples):
    keys = [key for key in examples[0] if key != "rejects"]
    batch = {key: np.stack([e[key] for e in examples]) for key in keys}
    rejects = [reject for example in examples for reject in example["rejects"]]
    return {**batch, "rejects": rejects}


class Batches:
    """The batches of an opened feed: `batches.batch(step)`, or `fit(batches.from_step(0), ...)`.

    Attributes:
        seen: samples handed out so far.
        rejects: (slot, index in the data, reason) of every bad sample among them.
    """

    def __init__(self, slots, batch_size, first=0):
        self.slots, self.batch_size, self.first = slots, batch_size, first
        self.seen, self.rejects = 0, []

    def batch(self, step: int) -> dict:
        """One step's `image`, uint8 (batch, height, width, 3), and `text`, int32 (batch, length), or
        `label`, int32 (batch,).
        """
        start = self.first + step * self.batch_size
        examples = [self.slots[start + i] for i in range(self.batch_size)]
        return self._accounted(_collate(examples))

    def pictures(self, count: int) -> np.ndarray:
        """The first batch's first, uint8 (count, height, width, 3); they don't count as handed out."""
        slots = range(self.first, self.first + min(count, self.batch_size))
        return np.stack([self.slots[slot]["image"] for slot in slots])

    def from_step(self, step: int = 0):
        """A generator of `(batch,)` from `step` on, without end: what `fit` takes.

        Batches are made ahead, in threads or worker processes, always in the same order.
        """
        feed = self.slots.feed
        start = self.first + step * self.batch_size
        stream = grain.MapDataset.source(self.slots)[start:]
        stream = stream.batch(self.batch_size, drop_remainder=True, batch_fn=_collate)
        ahead = grain.ReadOptions(num_threads=feed.threads, prefetch_buffer_size=feed.threads + 1)
        stream = stream.to_iter_dataset(ahead)
        if feed.workers:
            if not absl.flags.FLAGS.is_parsed():
                # Grain's workers read absl's flags, which a notebook never parses.
                absl.flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=feed.workers))
        for batch in stream:
            yield (self._accounted(batch),)

    def _accounted(self, batch):
        rejects = batch.pop("rejects")
        self.seen += self.batch_size
        if rejects:
            self.rejects.extend(rejects)
            for slot, index, reason in rejects:
                logging.warning("Sample %d replaced in slot %d: %s", index, slot, reason)
            self.check()
        return batch

    def check(self, final=False):
        """Raises DataError, with a summary, if too large a share of the samples was bad.

        Before the `final` check, the first `ENOUGH` samples are given time to even out.
        """
        limit = self.slots.feed.bad_limit
        if len(self.rejects) > limit * (self.seen if final else max(self.seen, ENOUGH)):
            reasons = "\n  ".join(reason for *_, reason in self.rejects[:5])
            raise DataError(
                f"{len(self.rejects):,} of {self.seen:,} samples can't be used, more than the "
                f"{limit:.1%} that feed.bad_limit allows. The first:\n  {reasons}\n"
                "Mend or leave out these samples, or set feed.bad_limit higher."
            )
