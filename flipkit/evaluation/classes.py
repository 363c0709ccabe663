"""Classes of zero-shot classification: their names, their vectors, and ranks among them."""

import collections
import json
import pathlib
from typing import Any

import numpy as np
from absl import logging

from flipkit import files
from flipkit.datasets.dataset import label_of
from flipkit.errors import ConfigurationError, DataError
from flipkit.evaluation import prompts, scores


def warn_of_duplicates(names):
    """Returns whether several classes share a name, and logs a warning if so."""
    counts = collections.Counter(name for name in names if name)
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        return False
    shown = [
        f"{name!r} (classes {', '.join(str(i) for i, n in enumerate(names) if n == name)})"
        for name in twice[:3]
    ]
    logging.warning(
        "%s of %s names belong to several classes, such as %s. These count as one class. Give each class "
        "a name of its own to tell them apart.",
        f"{len(twice):,}",
        f"{len(counts):,}",
        ", ".join(shown),
    )
    return True


def labels_of(samples, classes: int | None):
    """Returns the labels of samples, int (n,), below `classes`; None allows any label from 0 on."""
    labels: list[Any] = [label_of(sample) for sample in samples]
    if None in labels:
        bare = samples[labels.index(None)]
        meta = bare.get("meta", {}).items()
        fields = ", ".join(f"{name}={repr(value)[:40]}" for name, value in meta)
        raise DataError(
            f"Expected a `label`, a class's index. Received: {bare['id']} without one"
            f"{fields and f', whose .json has {fields}'}. Of tar shards, data.label_field names the "
            "field that holds it, and data.classes the classes where the field holds their names."
        )
    wrong = next((n for n in labels if n < 0 or (classes is not None and n >= classes)), None)
    if wrong is not None:
        raise DataError(f"A label is {wrong}, but there are {classes} classes")
    return np.array(labels, int)


def class_vectors(model, names, templates="name"):
    """Names of classes -> float32 unit vectors (classes, dim): the mean over the templates."""
    templates = prompts.get(templates)
    texts = [template.format(name) for template in templates for name in names]
    vectors = model.encode_texts(texts).reshape(len(templates), len(names), -1).mean(0)
    with np.errstate(invalid="ignore"):  # infinite ones become NaN
        return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-8)


def rank_metrics(images, classes, labels, groups=None) -> dict[str, float]:
    """Returns `top1`, `top5` and `mrr` of labels (n,), overall and by the group (n,) of each picture.

    Among classes with equal scores the worst place counts, so that a constant model gains nothing.
    `non_finite` counts vectors that are not finite, if any (see `flipkit.evaluation.scores.ranks`).
    """
    right = np.asarray(labels)[:, None] == np.arange(len(classes))
    ranks = scores.ranks(scores.cosines(images, classes), right)
    found = scores.summary(ranks)
    if groups is not None:
        for group in sorted(set(groups)):
            part = scores.summary(ranks[np.asarray(groups) == group])
            found |= {f"{group}/{metric}": value for metric, value in part.items()}
    return found | scores.count_lost(pictures=images, classes=classes)


def load_classnames(source: Any, data=None) -> tuple[Any, Any]:
    """Returns (names, groups or None) from a file, a list, or the data; see `ZeroShot`."""
    if source is None:
        if not hasattr(data, "classnames"):
            raise ConfigurationError("Zero-shot needs class names: set classnames=FILE.json")
        source = data.classnames()
    elif isinstance(source, (str, pathlib.Path)):
        path = pathlib.Path(source)
        if not path.is_file():
            raise ConfigurationError(f"Expected a file of class names. Received: {path}")
        text = files.read(path, "classnames")
        try:
            source = json.loads(text) if path.suffix == ".json" else text.splitlines()
        except ValueError as problem:
            raise ConfigurationError(f"{path} holds no JSON: {problem}") from problem
    names: Any = source
    groups: Any = None
    if isinstance(source, dict):
        names, groups = source.get("names"), source.get("split", source.get("concept_split"))
    texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not texts or not any(names):
        raise ConfigurationError(
            "Expected class names: a list of texts, or an object with such a list as `names`. "
            f"Received: {str(source)[:100]}"
        )
    if groups is not None and len(groups) != len(names):
        raise ConfigurationError(
            f"Expected a group for every class. Received: {len(groups)} groups, {len(names)} names"
        )
    while not names[-1]:  # such as the last line of a file; other empty names keep their place
        names = names[:-1]
    return names, groups
