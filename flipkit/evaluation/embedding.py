"""Embeds the pictures of a dataset, whole or in views."""

import dataclasses
import itertools
import math

import numpy as np
from absl import logging

from flipkit import datasets, maskers
from flipkit.errors import BadSample, ConfigurationError, DataError
from flipkit.random import Seed

CHUNK = 512  # pictures decoded and embedded at a time
PROBED = 4  # samples checked before a run begins


@dataclasses.dataclass(frozen=True)
class Views:
    """The patches of a picture that an evaluation embeds: `views(model, first, count)` -> ids or None.

    Attributes:
        mask_ratio: share of the patches dropped, drawn at random for each picture.
        ensemble: whether to add views that together hold every patch.
        seed: int that determines the draw, with the picture's index in the data.
    """

    mask_ratio: float = 0.0
    ensemble: bool = False
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.mask_ratio, (int, float)) or not 0 <= self.mask_ratio < 1:
            raise ConfigurationError(
                f"Expected a share in [0, 1). Received: mask_ratio={self.mask_ratio!r}"
            )

    def __call__(self, model, first, count):
        """Returns int32 (count, views, kept) for `count` pictures from index `first` on; None for all."""
        if not self.mask_ratio:
            return None
        self.check(model)
        patches = math.prod(model.image.grid)
        keep = max(1, round(patches * (1 - self.mask_ratio)))
        rows = np.arange(first, first + count, dtype="int32")
        seed = Seed(self.seed, rows=rows).named("views")
        ids = np.asarray(maskers.complementary_views(count, patches, keep, seed))
        return ids if self.ensemble else ids[:, :1]

    def check(self, model):
        """Raises ConfigurationError for a model that cannot skip patches."""
        if self.mask_ratio and not getattr(model.image, "grid", None):
            raise ConfigurationError(
                f"{type(model.image).__name__} cannot skip patches (it declares no grid): leave out "
                "mask_ratio."
            )


def encode(model, data, batch_size=256, views=None):
    """Embeds a dataset's pictures: (float32 unit vectors (n, dim), the n samples without pictures).

    It skips bad samples, and logs a warning for each.

    Args:
        views: `Views`, the patches of each picture to embed; None is all.
    """
    check_embeds(model, texts=False)

    def embed(pixels, first):
        ids = views(model, first, len(pixels)) if views else None
        masked = {} if ids is None else {"image_ids": ids}
        return model.encode_images(pixels, batch_size, **masked)

    return through(model, data, embed)


def check_embeds(model, texts=True):
    """Raises ConfigurationError for a model that cannot embed pictures or, with `texts`, texts."""
    if not hasattr(model, "encode_images"):
        raise ConfigurationError(
            f"Expected a model that embeds pictures, such as flipkit.FLIP. Received: "
            f"{type(model).__name__}, which the evaluator 'accuracy' takes"
        )
    if texts and not hasattr(model, "encode_texts"):
        raise ConfigurationError(
            f"Expected a model that embeds texts, such as flipkit.FLIP. Received: {type(model).__name__}"
        )
    if texts and getattr(model, "tokenizer", model) is None:
        raise ConfigurationError(
            "Expected a model with a tokenizer to embed texts, such as FLIP(tokenizer='wordpiece'). "
            "Received: tokenizer=None"
        )


def opened(data):
    """Returns the dataset of an evaluator's `data`; raises if it is None or empty."""
    found = datasets.get(data)
    if found is None:
        raise ConfigurationError("An evaluation needs data: data='test-*.tar', or a dataset")
    if not len(found):
        raise DataError(f"Nothing to evaluate: {found!r} has no samples")
    return found


def first_samples(model, data):
    """Returns the valid ones of the first PROBED samples, without pictures, to check them early."""
    looked = itertools.islice(_read(model, data), PROBED)
    return [sample for pixels, sample in looked if pixels is not None]  # `through` reports bad ones


def _read(model, data):
    """Yields each sample's preprocessed pixels and other fields; (None, the BadSample) for a bad one."""
    for i in range(len(data)):
        try:
            sample = dict(data[i])
            [pixels] = model.preprocessing.prepare([sample.pop("image")], model.image.image_size)
        except BadSample as problem:
            yield None, problem
        else:
            yield pixels, sample


def through(model, data, embed):
    """Returns `embed(pixels, index of the first)` of all pictures, and their samples without pictures."""
    vectors, samples, chunk, bad = [], [], [], 0

    def flush():
        if chunk:
            vectors.append(embed(np.stack(chunk), len(samples) - len(chunk)))
            chunk.clear()

    for pixels, sample in _read(model, data):
        if pixels is None:
            bad += 1
            logging.warning("Left out of the evaluation: %s", sample)
            continue
        chunk.append(pixels)
        samples.append(sample)
        if len(chunk) == CHUNK:
            flush()
    flush()
    if not samples:
        raise DataError(f"Nothing to evaluate: {bad:,} samples, none of which can be used")
    return np.concatenate(vectors), samples
