"""The second input of a batch, beside its pictures: ids of texts, labels, or other crops."""

import dataclasses
from typing import Any

import numpy as np

from flipkit.datasets.dataset import label_of
from flipkit.errors import BadSample, ConfigurationError, DataError


@dataclasses.dataclass(frozen=True)
class Texts:
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

    def __call__(self, sample, random, slots):
        texts = sample["texts"]
        if not texts:
            raise BadSample("no text")
        first = {"first": 1.0, "random": 1 / len(texts)}.get(self.captions, self.captions)
        chosen = 0
        if len(texts) > 1 and random.random() >= first:
            chosen = random.integers(1, len(texts))
        return {"text": self.tokenizer([texts[chosen]], self.length)[0]}


@dataclasses.dataclass(frozen=True)
class Labels:
    """A sample's class."""

    classes: int

    @classmethod
    def of(cls, model, feed):
        return cls(model.classes)

    def __call__(self, sample, random, slots):
        label = label_of(sample)
        if label is None:
            raise BadSample("no label")
        if not 0 <= label < self.classes:
            raise DataError(
                f"Expected labels from 0 to {self.classes - 1}: the model has {self.classes:,} "
                f"classes. Received: label={label} of {sample['id']}"
            )
        return {"label": np.int32(label)}


@dataclasses.dataclass(frozen=True)
class View:
    """Another crop of the same picture, changed by itself."""

    @classmethod
    def of(cls, model, feed):
        return cls()

    def __call__(self, sample, random, slots):
        return {"view": slots.pixels(sample["image"], random)}


READERS = {"text": Texts, "label": Labels, "view": View}  # by what a model reads beside pictures
