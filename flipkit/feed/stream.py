"""The endless stream of samples: each slot a function of (seed, slot)."""

import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from flipkit import preprocessing
from flipkit.errors import BadSample, DataError

ATTEMPTS = 100  # replacements tried for one bad sample
_SHUFFLE_ROUNDS = 4  # as grain's own MapDataset.shuffle


@dataclasses.dataclass(frozen=True)
class Slots:
    """The endless stream of samples: `slots[i]` is a function of (seed, i). Pickled for workers."""

    feed: Any  # `flipkit.Feed`
    data: Any
    count: int
    reader: Any
    image_size: int | tuple[int, int]
    interpolation: str
    seed: int

    def __len__(self):
        return 1 << 62  # grain needs a length; the stream has no end

    def index(self, slot: int) -> int:
        """The index of the sample in `slot`: each pass over the data is a permutation of its own."""
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
                return self._example(self.data[int(index)], random), rejects
            except BadSample as problem:
                rejects.append((int(slot), int(index), str(problem)))
        reasons = "\n  ".join(reason for *_, reason in rejects[:5])
        raise DataError(f"{ATTEMPTS} samples in a row can't be used, among them\n  {reasons}")

    def _example(self, sample, random):
        try:
            image = {"image": self.pixels(sample["image"], random)}
            return image if self.reader is None else {**image, **self.reader(sample, random, self)}
        except BadSample as problem:  # the decoder does not have the sample's id
            raise BadSample(f"{sample['id']}: {problem}") from problem

    def pixels(self, image, random):
        """The picture in a sample's `image`, cropped and changed: uint8 (height, width, 3)."""
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


def _shuffled(place, count, *key):
    """The image of `place`, of `count`, in the permutation with this `key`."""
    return grain.experimental.index_shuffle(place, count - 1, _permutation(key), _SHUFFLE_ROUNDS)


@functools.lru_cache(1024)
def _permutation(key):
    return int(np.random.SeedSequence(key).generate_state(1)[0])
