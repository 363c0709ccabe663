"""Embedding the pictures of a data set, whole or in views."""

import dataclasses
import itertools
import math

import numpy as np
from absl import logging

from flipkit import datasets, maskers
from flipkit.errors import BadSample, ConfigurationError, DataError
from flipkit.random import Seed

CHUNK = 512  # pictures decoded and embedded at a time
PROBED = 4  # samples looked at before a run begins


@dataclasses.dataclass(frozen=True)
class Views:
    """What of a picture an evaluation sees: `views(model, first, count)` -> ids, or None for all.

    Attributes:
        mask_ratio: share of the patches dropped, drawn at random for each picture.
        ensemble: whether further views follow that together hold every patch.
        seed: int that the draw is a function of, with the picture's place in the data.
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
        """int32 (count, views, kept) for the pictures from the `first` on."""
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
        """Refuses a model that has no patches to skip."""
        if self.mask_ratio and not getattr(model.image, "grid", None):
            raise ConfigurationError(
                f"{type(model.image).__name__} cannot skip patches (it tells no grid): leave out "
                "mask_ratio."
            )


def encode(model, data, batch_size=256, views=None):
    """Embeds a dataset's pictures: (float32 unit vectors (n, dim), the n samples without pictures).

    Bad samples are left out, with a warning that counts them.

    Args:
        views: `Views`, what to see of each picture; None is all.
    """
    check_embeds(model, texts=False)

    def embed(pixels, first):
        ids = views(model, first, len(pixels)) if views else None
        masked = {} if ids is None else {"image_ids": ids}
        return model.encode_images(pixels, batch_size, **masked)

    return through(model, data, embed)


def check_embeds(model, texts=True):
    """Refuses a model that embeds no pictures or, where `texts` are asked for, no texts."""
    if not hasattr(model, "encode_images"):
        raise ConfigurationError(
            f"Expected a model that embeds pictures, such as flipkit.FLIP. Received: "
            f"{type(model).__name__}, which evaluator 'accuracy' is for"
        )
    if texts and not hasattr(model, "encode_texts"):
        raise ConfigurationError(
            f"Expected a model that embeds texts, such as flipkit.FLIP. Received: {type(model).__name__}"
        )
    if texts and getattr(model, "tokenizer", model) is None:
        raise ConfigurationError(
            "Texts are embedded too. Expected a model with a tokenizer, such as "
            "FLIP(tokenizer='wordpiece'). Received: tokenizer=None"
        )


def opened(data):
    """The dataset that an evaluator's `data` means; refused if it is empty or isn't there."""
    found = datasets.get(data)
    if found is None:
        raise ConfigurationError("An evaluation needs data: data='test-*.tar', or a dataset")
    if not len(found):
        raise DataError(f"Nothing to evaluate: {found!r} has no samples")
    return found


def first_samples(model, data):
    """The first samples that can be used, without their pictures: what is wrong with all shows there."""
    looked = itertools.islice(_read(model, data), PROBED)
    return [sample for pixels, sample in looked if pixels is not None]  # bad ones are told later


def _read(model, data):
    """Each sample's pixels as the model takes them, and the rest of it; None and why of a bad one."""
    for i in range(len(data)):
        try:
            sample = dict(data[i])
            [pixels] = model.preprocessing.prepare([sample.pop("image")], model.image.image_size)
        except BadSample as problem:
            yield None, problem
        else:
            yield pixels, sample


def through(model, data, embed):
    """`embed(pixels, place of the first)` of all pictures, and their samples without them."""
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
