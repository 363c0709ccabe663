"""The batches of an opened feed: each a function of (seed, step)."""

import dataclasses
from typing import Any

import absl.flags
import grain
import numpy as np
from absl import logging

from flipkit.errors import DataError

ENOUGH = 1_000  # samples before the share of bad ones is meaningful


def _collate(slots):
    """Examples and their rejects, slot by slot -> a batch, and all rejects."""
    examples = [example for example, _ in slots]
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    return batch, [reject for _, rejects in slots for reject in rejects]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some rows of each batch, one after another: item i is row i % len(rows) of batch i // len(rows)."""

    slots: Any  # `flipkit.feed.stream.Slots`
    batch_size: int
    start: int  # slot of the first batch's first row
    rows: range

    def __len__(self):
        return len(self.slots)

    def __getitem__(self, i):
        batch, place = divmod(i, len(self.rows))
        return self.slots[self.start + batch * self.batch_size + self.rows[place]]


class Batches:
    """The batches of an opened feed: `batches.batch(step)`, or `fit(batches.from_step(0), ...)`.

    Args:
        slots: `flipkit.feed.stream.Slots`.
        batch_size: rows of a whole batch.
        first: slot of the first batch's first row.
        rows: the rows of each batch that this process reads; None is all.

    Attributes:
        seen: samples returned so far.
        rejects: (slot, index in the data, reason) of every bad sample among them.
    """

    def __init__(self, slots, batch_size, first=0, rows=None):
        self.slots, self.batch_size, self.first = slots, batch_size, first
        self.rows = range(batch_size) if rows is None else rows
        self.seen, self.rejects = 0, []

    def batch(self, step: int) -> dict:
        """One step's `image`, uint8 (batch, height, width, 3), and `text`, int32 (batch, length), or
        `label`, int32 (batch,), or `view`, as `image`: what the model reads. Of a part, its rows alone.
        """
        own = self._from(step)
        return self._accounted(*_collate([own[i] for i in range(len(self.rows))]))

    def _from(self, step):
        start = self.first + step * self.batch_size
        return _Rows(self.slots, self.batch_size, start, self.rows)

    def pictures(self, count: int) -> np.ndarray:
        """The first batch's first pictures, uint8 (count, height, width, 3); `seen` does not count them."""
        slots = range(self.first, self.first + min(count, self.batch_size))
        return np.stack([self.slots[slot][0]["image"] for slot in slots])

    def from_step(self, step: int = 0):
        """A generator of `(batch,)` from `step` on, without end: the input of `fit`.

        Threads or worker processes make batches ahead, always in the same order.
        """
        feed = self.slots.feed
        stream = grain.MapDataset.source(self._from(step))
        stream = stream.batch(len(self.rows), drop_remainder=True, batch_fn=_collate)
        ahead = grain.ReadOptions(num_threads=feed.threads, prefetch_buffer_size=feed.threads + 1)
        stream = stream.to_iter_dataset(ahead)
        if feed.workers:
            if not absl.flags.FLAGS.is_parsed():
                # Grain's workers read absl's flags, which a notebook never parses.
                absl.flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=feed.workers))
        for batch, rejects in stream:
            yield (self._accounted(batch, rejects),)

    def _accounted(self, batch, rejects):
        self.seen += len(self.rows)
        if rejects:
            self.rejects.extend(rejects)
            for slot, index, reason in rejects:
                logging.warning("Sample %d replaced in slot %d: %s", index, slot, reason)
            self.check()
        return batch

    def check(self, final=False):
        """Raises DataError, with a summary, if too large a share of the samples was bad.

        Before the `final` check, it allows the first `ENOUGH` samples any share.
        """
        limit = self.slots.feed.bad_limit
        if len(self.rejects) > limit * (self.seen if final else max(self.seen, ENOUGH)):
            reasons = "\n  ".join(reason for *_, reason in self.rejects[:5])
            raise DataError(
                f"{len(self.rejects):,} of {self.seen:,} samples can't be used, more than the "
                f"{limit:.1%} that feed.bad_limit allows. The first:\n  {reasons}\n"
                "Mend or leave out these samples, or set feed.bad_limit higher."
            )
