"""The evaluators: zero-shot classification, retrieval, captions against foils, accuracy."""

import collections
import inspect
from typing import Any

import numpy as np

from flipkit import configs, datasets, plugins, settings
from flipkit.errors import ConfigurationError, DataError
from flipkit.evaluation import prompts, scores
from flipkit.evaluation.classes import (
    class_vectors,
    labels_of,
    load_classnames,
    rank_metrics,
    warn_of_duplicates,
)
from flipkit.evaluation.embedding import Views, check_embeds, encode, first_samples, opened, through
from flipkit.registry import Configurable, register


@register
class ZeroShot(Configurable):
    """Zero-shot classification: assigns each picture the class whose name is nearest.

    The vector of a class is computed as in CLIP: the unit vector of each template's text, their mean, made
    a unit vector. Classes with the same name count as one: a picture of any of them is right if that name
    is nearest. (CLIP and open_clip compare indices, so that pictures of only one of them can be right.)

    Args:
        data: labelled pictures: a dataset whose samples have `label`, its name, or a shard pattern.
        classnames: a JSON file (a list, or an object with `names` and, where classes fall into groups,
            a parallel list `split` or `concept_split`), a text file with a name per line, or a list;
            None reads them from the data.
        templates: "name", "openai_7" (what FLIP reports), "openai_80", or a list of texts with {}.
        mask_ratio: share of each picture's patches that are dropped, at random; FLIP evaluates with 0.
        ensemble: with a mask, whether a picture's vector is the unit mean of several views that
            together hold all of its patches (FLIP, Table 1d).
        seed: int of the random masks.

    Returns, when called with a model:
        `top1`, `top5`: shares of the pictures; `mrr`: mean reciprocal rank of the right class; and
        `<group>/top1`, ... for the pictures of each group's classes. Ranks are over all classes.
        `non_finite`, where there are any, counts pictures and classes whose vectors are not finite:
        such pictures, and pictures of such classes, count as wrong in every metric.
    """

    reads_text = True

    def __init__(
        self, data, classnames=None, templates="name", mask_ratio=0.0, ensemble=False, seed=0
    ):
        self.data, self.classnames, self.templates = data, classnames, templates
        self.mask_ratio, self.ensemble, self.seed = mask_ratio, ensemble, seed
        self._views = Views(mask_ratio, ensemble, seed)
        self._warned = False  # of class names that are not unique

    def check(self, model):
        """Raises the errors of a call that can be found without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        """Returns the data, the classes' names, and their groups or None."""
        check_embeds(model)
        prompts.get(self.templates)
        self._views.check(model)
        data = opened(self.data)
        names, groups = load_classnames(self.classnames, data)
        labels_of(first_samples(model, data), len(names))
        self._warned = self._warned or warn_of_duplicates(names)
        return data, names, groups

    def __call__(self, model) -> dict[str, float]:
        data, names, groups = self._prepared(model)
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        classes = class_vectors(model, [*places], self.templates)
        images, samples = encode(model, data, views=self._views)
        labels = labels_of(samples, len(names))
        own = np.array([places[names[label]] for label in labels])
        return rank_metrics(
            images, classes, own, None if groups is None else np.array(groups)[labels]
        )


@register
class Retrieval(Configurable):
    """Retrieval both ways: recall at 1, 5 and 10.

    A picture may have several texts, and several pictures the same text: any match counts as found.

    Args:
        data: a dataset, its name, or a shard pattern.
        mask_ratio, ensemble, seed: as in `ZeroShot`.

    Returns, when called with a model:
        `image_to_text/recall@1`, ..., `text_to_image/recall@1`, ..., the numbers of `images` and `texts`,
        and `non_finite`, where there are any: pictures and texts whose vectors are not finite, which count
        as wrong and as not found.
    """

    reads_text = True

    def __init__(self, data, mask_ratio=0.0, ensemble=False, seed=0):
        self.data = data
        self.mask_ratio, self.ensemble, self.seed = mask_ratio, ensemble, seed
        self._views = Views(mask_ratio, ensemble, seed)

    def check(self, model):
        """Raises the errors of a call that can be found without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        check_embeds(model)
        self._views.check(model)
        data = opened(self.data)
        _check_texts(first_samples(model, data))
        return data

    def __call__(self, model) -> dict[str, float]:
        images, samples = encode(model, self._prepared(model), views=self._views)
        _check_texts(samples)
        places = collections.defaultdict(list)  # text -> pictures it belongs to
        for place, sample in enumerate(samples):
            for text in dict.fromkeys(sample["texts"]):
                places[text].append(place)
        texts = model.encode_texts(list(places))
        belongs = np.zeros((len(images), len(texts)), bool)
        for column, rows in enumerate(places.values()):
            belongs[rows, column] = True
        near = scores.cosines(images, texts)
        found: dict[str, float] = {"images": len(images), "texts": len(texts)}
        for name, score, right in (
            ("image_to_text", near, belongs),
            ("text_to_image", near.T, belongs.T),
        ):
            ranks = scores.ranks(score, right)
            found |= {f"{name}/recall@{k}": float(np.mean(ranks <= k)) for k in (1, 5, 10)}
        return found | scores.count_lost(pictures=images, texts=texts)


def _check_texts(samples):
    bare = next((sample for sample in samples if not sample.get("texts")), None)
    if bare is not None:
        raise DataError(f"Retrieval needs samples with texts. Received: {bare['id']} without one")


@register
class CaptionChoice(Configurable):
    """Choice between a picture's caption and a foil of the same words; chance is 0.5.

    Args:
        data: a dataset whose samples have two texts, the true one first.

    Returns, when called with a model:
        `accuracy`, `count`, and `non_finite`, where there are any: vectors that are not finite. Ties, and
        choices with such vectors, count as wrong.
    """

    reads_text = True

    def __init__(self, data):
        self.data = data

    def check(self, model):
        """Raises the errors of a call that can be found without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        check_embeds(model)
        data = opened(self.data)
        _check_choices(first_samples(model, data))
        return data

    def __call__(self, model) -> dict[str, float]:
        images, samples = encode(model, self._prepared(model))
        _check_choices(samples)
        true, foil = (
            model.encode_texts([sample["texts"][i] for sample in samples]) for i in (0, 1)
        )
        lost = scores.count_lost(**{"pictures": images, "captions": true, "foils": foil})
        sound = scores.finite(images) & scores.finite(true) & scores.finite(foil)
        images, true, foil = images[sound], true[sound], foil[sound]
        right = ((images * true).sum(1) > (images * foil).sum(1)).sum()
        return {"accuracy": float(right / len(sound)), "count": len(sound), **lost}


def _check_choices(samples):
    if any(len(sample.get("texts", ())) != 2 for sample in samples):
        raise DataError(
            "A choice needs samples with two texts, the true one and its foil, such as "
            "data=captioned_shapes data.split=word_order"
        )


@register
class Accuracy(Configurable):
    """Accuracy of a `flipkit.Classifier`: the share of pictures with the right label, top-1 and top-5.

    Args:
        data: labelled pictures: a dataset whose samples have `label`, its name, or a shard pattern.

    Returns, when called with a model:
        `top1`, `top5`, `count`, and `non_finite`, where there are any: pictures whose logits are not all
        finite, which count as wrong.
    """

    def __init__(self, data):
        self.data = data

    def check(self, model):
        """Raises the errors of a call that can be found without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        if not hasattr(model, "classify"):
            raise ConfigurationError(
                "Expected a classifier; the evaluator of a FLIP is zero_shot. Received: "
                f"{type(model).__name__}"
            )
        data = opened(self.data)
        if hasattr(model, "classes"):
            labels_of(first_samples(model, data), model.classes)
        return data

    def __call__(self, model) -> dict[str, float]:
        data = self._prepared(model)
        logits, samples = through(model, data, lambda pixels, first: model.classify(pixels, 256))
        labels = labels_of(samples, logits.shape[1])
        lost = scores.count_lost(pictures=logits)
        logits = np.where(scores.finite(logits)[:, None], logits, np.nan)
        found = scores.summary(scores.ranks(logits, labels[:, None] == np.arange(logits.shape[1])))
        return {name: found[name] for name in ("top1", "top5", "count")} | lost


@register
class Neighbours(Configurable):
    """Share of pictures whose nearest other picture has the same label, also for models without texts.

    Args:
        data: labelled pictures, several of each label: a dataset, its name, or a shard pattern.

    Returns, when called with a model:
        `top1`, `top5` and `mrr` of the nearest picture with the same label among all others, `count`, and
        `non_finite`, where there are any: pictures whose vectors are not finite, which count as wrong.
    """

    def __init__(self, data):
        self.data = data

    def check(self, model):
        """Raises the errors of a call that can be found without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        check_embeds(model, texts=False)
        data = opened(self.data)
        labels_of(first_samples(model, data), None)
        return data

    def __call__(self, model) -> dict[str, float]:
        images, samples = encode(model, self._prepared(model))
        labels = labels_of(samples, None)
        others = ~np.eye(len(images), dtype=bool)
        near = np.where(others, scores.cosines(images, images), -np.inf)
        ranks = scores.ranks(near, (labels[:, None] == labels) & others)
        return scores.summary(ranks) | scores.count_lost(pictures=images)


def make(name: str, texts: dict[str, str]):
    """Returns the evaluator called `name`, with arguments parsed from text.

    Args:
        name: of an evaluator of flipkit or a plugin.
        texts: {argument, or dotted path into one: text}.

    Raises:
        UnknownName: no evaluator or argument has this name; the message names the nearest one.
    """
    owner: Any = plugins.component("evaluators", name)
    known = {n: p.default for n, p in inspect.signature(owner).parameters.items()}
    given = settings.read({n: text for n, text in texts.items() if "." not in n}, known)
    if "data" in known and "data" not in given:
        raise ConfigurationError(f"{name} needs data: data='test-*.tar', or a dataset's name")
    if "data" in given:
        given["data"] = datasets.get(given["data"])
    paths = {n: settings.parse(text) for n, text in texts.items() if "." in n}
    return configs.changed(owner(**given), paths) if paths else owner(**given)
