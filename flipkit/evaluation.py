"""What a model is worth: zero-shot classification, retrieval, and telling a caption from its foil."""

import collections
import inspect
import json
import pathlib
from typing import Any

import numpy as np
from absl import logging

from flipkit import datasets, prompts
from flipkit.errors import BadSample, ConfigurationError, DataError, UnknownName, nearest
from flipkit.registry import Configurable, register
from flipkit.settings import as_like, parse

CHUNK = 512  # pictures decoded and embedded at a time


def encode(model, data, batch_size=256):
    """Embeds a dataset's pictures: (float32 unit vectors (n, dim), the n samples without pictures).

    Bad samples are left out, with a warning that counts them.
    """
    vectors, samples, chunk, bad = [], [], [], 0
    for i in range(len(data)):
        try:
            sample = dict(data[i])
            [pixels] = model.preprocessing.prepare([sample.pop("image")], model.image.image_size)
        except BadSample as problem:
            bad += 1
            logging.warning("Left out of the evaluation: %s", problem)
            continue
        chunk.append(pixels)
        samples.append(sample)
        if len(chunk) == CHUNK:
            vectors.append(model.encode_images(np.stack(chunk), batch_size))
            chunk = []
    if chunk:
        vectors.append(model.encode_images(np.stack(chunk), batch_size))
    if not samples:
        raise DataError(f"Nothing to evaluate: {bad:,} samples, none of which can be used")
    return np.concatenate(vectors), samples


@register
class ZeroShot(Configurable):
    """Zero-shot classification: each picture is given the class whose name is nearest.

    A class is embedded as CLIP does it: every template's text to a unit vector, their mean, a unit
    vector again.

    Args:
        data: labelled pictures: a dataset whose samples have `label`, its name, or a shard pattern.
        classnames: a JSON file (a list, or an object with `names` and, where classes fall into groups,
            a parallel list `split` or `concept_split`), a text file with a name per line, or a list;
            None asks the data.
        templates: "name", "openai_7" (what FLIP reports), "openai_80", or a list of texts with {}.

    Returns, when called with a model:
        `top1`, `top5`: shares of the pictures; `mrr`: mean reciprocal rank of the right class; and
        `<group>/top1`, ... for the pictures of each group's classes. Ranks are over all classes.
    """

    def __init__(self, data, classnames=None, templates="name"):
        self.data, self.classnames, self.templates = data, classnames, templates

    def __call__(self, model) -> dict[str, float]:
        data = datasets.get(self.data)
        names, groups = load_classnames(self.classnames, data)
        images, samples = encode(model, data)
        if any("label" not in sample for sample in samples):
            raise DataError(
                "Zero-shot classification needs samples with a `label`, a class's index"
            )
        labels = np.array([sample["label"] for sample in samples])
        wrong = labels[(labels < 0) | (labels >= len(names))]
        if wrong.size:
            raise DataError(f"A label is {wrong[0]}, but there are {len(names)} class names")
        return rank_metrics(images, class_vectors(model, names, self.templates), labels, groups)


def class_vectors(model, names, templates="name"):
    """Names of classes -> float32 unit vectors (classes, dim): the mean over the templates."""
    templates = prompts.get(templates)
    texts = [template.format(name) for template in templates for name in names]
    vectors = model.encode_texts(texts).reshape(len(templates), len(names), -1).mean(0)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-8)


def rank_metrics(images, classes, labels, groups=None) -> dict[str, float]:
    """`top1`, `top5` and `mrr` of labels (n,), overall and by the group of each class.

    Of classes with equal scores the worst place counts, so that a constant model gains nothing.
    """
    scores = images @ classes.T
    own = scores[np.arange(len(labels)), labels][:, None]
    ranks = (scores >= own).sum(1)
    found = _rank_summary(ranks)
    if groups is not None:
        of_image = np.asarray(groups)[labels]
        for group in sorted(set(of_image)):
            part = _rank_summary(ranks[of_image == group])
            found |= {f"{group}/{metric}": value for metric, value in part.items()}
    return found


def _rank_summary(ranks):
    top1, top5, mrr = np.mean(ranks <= 1), np.mean(ranks <= 5), np.mean(1 / ranks)
    return {"top1": float(top1), "top5": float(top5), "mrr": float(mrr), "count": len(ranks)}


def load_classnames(source: Any, data=None) -> tuple[Any, Any]:
    """(names, groups or None) from a file, a list, or the data itself; see `ZeroShot`."""
    if source is None:
        if not hasattr(data, "classnames"):
            raise ConfigurationError("Zero-shot needs class names: set classnames=FILE.json")
        source = data.classnames()
    elif isinstance(source, (str, pathlib.Path)):
        path = pathlib.Path(source)
        if not path.is_file():
            raise ConfigurationError(f"Expected a file of class names. Received: {path}")
        text = path.read_text(encoding="utf-8")
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
    while not names[-1]:  # the last line of a file; elsewhere an empty name keeps its place
        names = names[:-1]
    return names, groups


@register
class Retrieval(Configurable):
    """Retrieval both ways: recall at 1, 5 and 10.

    A picture has several texts and a text may belong to several pictures (the same words twice): any
    of them counts as found.

    Args:
        data: a dataset, its name, or a shard pattern.
    """

    def __init__(self, data):
        self.data = data

    def __call__(self, model) -> dict[str, float]:
        images, samples = encode(model, datasets.get(self.data))
        places = collections.defaultdict(list)  # text -> pictures it belongs to
        for place, sample in enumerate(samples):
            for text in dict.fromkeys(sample["texts"]):
                places[text].append(place)
        texts = model.encode_texts(list(places))
        belongs = np.zeros((len(images), len(texts)), bool)
        for column, rows in enumerate(places.values()):
            belongs[rows, column] = True
        scores = images @ texts.T
        found: dict[str, float] = {"images": len(images), "texts": len(texts)}
        for name, score, right in (
            ("image_to_text", scores, belongs),
            ("text_to_image", scores.T, belongs.T),
        ):
            best = np.where(right, score, -np.inf).max(1, keepdims=True)
            # Ties with wrong ones count against it.
            ranks = 1 + ((score >= best) & ~right).sum(1)
            found |= {f"{name}/recall@{k}": float(np.mean(ranks <= k)) for k in (1, 5, 10)}
        return found


@register
class CaptionChoice(Configurable):
    """Telling a picture's caption from a foil of the same words; chance is 0.5.

    Args:
        data: a dataset whose samples have two texts, the true one first.
    """

    def __init__(self, data):
        self.data = data

    def __call__(self, model) -> dict[str, float]:
        images, samples = encode(model, datasets.get(self.data))
        if any(len(sample["texts"]) != 2 for sample in samples):
            raise DataError(
                "A choice needs samples with two texts, the true one and its foil, such as "
                "data=captioned_shapes data.split=word_order"
            )
        true, foil = (
            model.encode_texts([sample["texts"][i] for sample in samples]) for i in (0, 1)
        )
        right = (images * true).sum(1) > (images * foil).sum(1)
        return {"accuracy": float(right.mean()), "count": len(right)}


EVALUATORS = {"zero_shot": ZeroShot, "retrieval": Retrieval, "caption_choice": CaptionChoice}


def make(name: str, settings: dict[str, str]):
    """The evaluator called `name`, with its arguments given as text.

    Raises:
        UnknownName: no such evaluator or argument; the nearest one is told.
    """
    if name not in EVALUATORS:
        raise UnknownName(f"Unknown evaluator: {name!r}. {nearest(name, EVALUATORS)}")
    values = {setting: parse(text) for setting, text in settings.items()}
    known = inspect.signature(EVALUATORS[name]).parameters
    for setting in values:
        if setting not in known and not setting.startswith("data."):
            raise UnknownName(f"Unknown argument of {name}: {setting!r}. {nearest(setting, known)}")
    if "data" not in values:
        raise ConfigurationError(f"{name} needs data: data='test-*.tar', or a dataset's name")
    data: Any = datasets.get(values.pop("data"))
    for setting in [setting for setting in values if setting.startswith("data.")]:
        config, key = data.get_config(), setting.removeprefix("data.")
        if key not in config:
            raise UnknownName(f"Unknown: {setting!r}. {nearest(key, config)}")
        config[key] = as_like(values.pop(setting), [config[key]], setting)
        data = type(data).from_config(config)
    return EVALUATORS[name](data, **values)
