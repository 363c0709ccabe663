"""What a model is worth: zero-shot classification, retrieval, and telling a caption from its foil."""

import collections
import dataclasses
import inspect
import itertools
import json
import math
import pathlib
from typing import Any

import numpy as np
from absl import logging

from flipkit import datasets, maskers, prompts, scores, text_files
from flipkit.datasets.dataset import label_of
from flipkit.errors import BadSample, ConfigurationError, DataError, UnknownName, nearest
from flipkit.random import Seed
from flipkit.registry import Configurable, register
from flipkit.settings import as_like, parse

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
    _check_embeds(model)

    def embed(pixels, first):
        ids = views(model, first, len(pixels)) if views else None
        masked = {} if ids is None else {"image_ids": ids}
        return model.encode_images(pixels, batch_size, **masked)

    return _through(model, data, embed)


def _check_embeds(model):
    if not hasattr(model, "encode_images"):
        raise ConfigurationError(
            f"Expected a model that embeds pictures, such as flipkit.FLIP. Received: "
            f"{type(model).__name__}, which evaluator 'accuracy' is for"
        )
    if getattr(model, "tokenizer", model) is None:
        raise ConfigurationError(
            "Texts are embedded too. Expected a model with a tokenizer, such as "
            "FLIP(tokenizer='wordpiece'). Received: tokenizer=None"
        )


def _opened(data):
    """The dataset that an evaluator's `data` means; refused if it is empty or isn't there."""
    found = datasets.get(data)
    if found is None:
        raise ConfigurationError("An evaluation needs data: data='test-*.tar', or a dataset")
    if not len(found):
        raise DataError(f"Nothing to evaluate: {found!r} has no samples")
    return found


def _first(model, data):
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


def _through(model, data, embed):
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


@register
class ZeroShot(Configurable):
    """Zero-shot classification: each picture is given the class whose name is nearest.

    A class is embedded as CLIP does it: every template's text to a unit vector, their mean, a unit
    vector again. Classes with the same name are one class: a picture of any of them is right where that
    name is nearest. (CLIP and open_clip tell them apart by their index, so that pictures of only one of
    them can be right.)

    Args:
        data: labelled pictures: a dataset whose samples have `label`, its name, or a shard pattern.
        classnames: a JSON file (a list, or an object with `names` and, where classes fall into groups,
            a parallel list `split` or `concept_split`), a text file with a name per line, or a list;
            None asks the data.
        templates: "name", "openai_7" (what FLIP reports), "openai_80", or a list of texts with {}.
        mask_ratio: share of each picture's patches that are dropped, at random; 0 as FLIP is used.
        ensemble: with a mask, whether a picture's vector is the unit mean of several views that
            together hold all of its patches (FLIP, Table 1d).
        seed: int, what masks are drawn from.

    Returns, when called with a model:
        `top1`, `top5`: shares of the pictures; `mrr`: mean reciprocal rank of the right class; and
        `<group>/top1`, ... for the pictures of each group's classes. Ranks are over all classes.
        `non_finite`, where there are any, counts pictures and classes whose vectors are not finite:
        such pictures, and pictures of such classes, count as wrong in every metric.
    """

    def __init__(
        self, data, classnames=None, templates="name", mask_ratio=0.0, ensemble=False, seed=0
    ):
        self.data, self.classnames, self.templates = data, classnames, templates
        self.mask_ratio, self.ensemble, self.seed = mask_ratio, ensemble, seed
        self._views = Views(mask_ratio, ensemble, seed)
        self._warned = False  # of names that several classes have

    def check(self, model):
        """Raises what calling it would raise, as far as that shows without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        """The data, the classes' names, and their groups or None."""
        _check_embeds(model)
        prompts.get(self.templates)
        self._views.check(model)
        data = _opened(self.data)
        names, groups = load_classnames(self.classnames, data)
        _labels(_first(model, data), len(names))
        self._warned = self._warned or _warn_of_duplicates(names)
        return data, names, groups

    def __call__(self, model) -> dict[str, float]:
        data, names, groups = self._prepared(model)
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        classes = class_vectors(model, [*places], self.templates)
        images, samples = encode(model, data, views=self._views)
        labels = _labels(samples, len(names))
        own = np.array([places[names[label]] for label in labels])
        return rank_metrics(
            images, classes, own, None if groups is None else np.array(groups)[labels]
        )


def _warn_of_duplicates(names):
    """Whether several classes have one name, which a warning says."""
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


def _labels(samples, classes):
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
    wrong = next((label for label in labels if not 0 <= label < classes), None)
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
    """`top1`, `top5` and `mrr` of labels (n,), overall and by the group (n,) of each picture.

    Of classes with equal scores the worst place counts, so that a constant model gains nothing. Where
    vectors are not finite, `non_finite` counts them (`flipkit.scores.ranks` says what becomes of them).
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
    """(names, groups or None) from a file, a list, or the data itself; see `ZeroShot`."""
    if source is None:
        if not hasattr(data, "classnames"):
            raise ConfigurationError("Zero-shot needs class names: set classnames=FILE.json")
        source = data.classnames()
    elif isinstance(source, (str, pathlib.Path)):
        path = pathlib.Path(source)
        if not path.is_file():
            raise ConfigurationError(f"Expected a file of class names. Received: {path}")
        text = text_files.read(path, "classnames")
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
        mask_ratio, ensemble, seed: as in `ZeroShot`.

    Returns, when called with a model:
        `image_to_text/recall@1`, ..., `text_to_image/recall@1`, ..., the numbers of `images` and `texts`,
        and `non_finite`, where there are any: pictures and texts whose vectors are not finite, which find
        nothing and are not found.
    """

    def __init__(self, data, mask_ratio=0.0, ensemble=False, seed=0):
        self.data = data
        self.mask_ratio, self.ensemble, self.seed = mask_ratio, ensemble, seed
        self._views = Views(mask_ratio, ensemble, seed)

    def check(self, model):
        """Raises what calling it would raise, as far as that shows without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        _check_embeds(model)
        self._views.check(model)
        data = _opened(self.data)
        _check_texts(_first(model, data))
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
    """Telling a picture's caption from a foil of the same words; chance is 0.5.

    Args:
        data: a dataset whose samples have two texts, the true one first.

    Returns, when called with a model:
        `accuracy`, where a tie is wrong, `count`, and `non_finite`, where there are any: vectors that are
        not finite, whose choices are wrong.
    """

    def __init__(self, data):
        self.data = data

    def check(self, model):
        """Raises what calling it would raise, as far as that shows without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        _check_embeds(model)
        data = _opened(self.data)
        _check_choices(_first(model, data))
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
    """What share of pictures a `flipkit.Classifier` gives their label: top-1 and top-5.

    Args:
        data: labelled pictures: a dataset whose samples have `label`, its name, or a shard pattern.

    Returns, when called with a model:
        `top1`, `top5`, `count`, and `non_finite`, where there are any: pictures whose logits are not all
        finite, which count as wrong.
    """

    def __init__(self, data):
        self.data = data

    def check(self, model):
        """Raises what calling it would raise, as far as that shows without embedding anything."""
        self._prepared(model)

    def _prepared(self, model):
        if not hasattr(model, "classify"):
            raise ConfigurationError(
                "Accuracy is a classifier's; a FLIP names pictures by zero_shot. Received: "
                f"{type(model).__name__}"
            )
        data = _opened(self.data)
        if hasattr(model, "classes"):
            _labels(_first(model, data), model.classes)
        return data

    def __call__(self, model) -> dict[str, float]:
        data = self._prepared(model)
        logits, samples = _through(model, data, lambda pixels, first: model.classify(pixels, 256))
        labels = _labels(samples, logits.shape[1])
        lost = scores.count_lost(pictures=logits)
        logits = np.where(scores.finite(logits)[:, None], logits, np.nan)
        found = scores.summary(scores.ranks(logits, labels[:, None] == np.arange(logits.shape[1])))
        return {name: found[name] for name in ("top1", "top5", "count")} | lost


EVALUATORS = {
    "accuracy": Accuracy,
    "caption_choice": CaptionChoice,
    "retrieval": Retrieval,
    "zero_shot": ZeroShot,
}


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
