"""Samples to batches on the host: a pure function of (seed, step)."""

from flipkit.feed.batches import Batches as Batches
from flipkit.feed.feed import Feed as Feed
