"""Writes and reads the classes that a model assigns to a few test pictures."""

import json
import pathlib
from typing import Any

import numpy as np

from flipkit import datasets, evaluation, files
from flipkit.errors import BadSample

PICTURES = 12
FILE = "answers.json"


def write(model, evaluators, folder, pictures=PICTURES) -> pathlib.Path | None:
    """Writes the model's answers on pictures of its first zero-shot evaluator to `folder/answers.json`.

    Returns:
        The file, or None for a run without zero-shot classification.
    """
    evaluator = zero_shot(evaluators)
    if evaluator is None:
        return None
    path = pathlib.Path(folder) / FILE
    files.write_json(path, answers(model, evaluator, pictures))
    return path


def zero_shot(evaluators) -> evaluation.ZeroShot | None:
    """Returns the first zero-shot evaluator, or None."""
    found = (e for e in evaluators.values() if isinstance(e, evaluation.ZeroShot))
    return next(found, None)


def answers(model, evaluator, pictures=PICTURES) -> list[dict]:
    """Returns `{"index", "truth", "answer"}` of pictures taken evenly from a zero-shot evaluator's data.

    Args:
        model: a `flipkit.FLIP`.
        evaluator: `flipkit.ZeroShot`.
        pictures: how many, at most as many as there are.
    """
    data: Any = datasets.get(evaluator.data)
    names, _ = evaluation.load_classnames(evaluator.classnames, data)
    count = min(pictures, len(data))
    pixels, found = [], []
    # Adds one to each step: test data often cycles through its classes, and none is to repeat.
    for index in [(place * len(data) // count + place) % len(data) for place in range(count)]:
        try:
            sample = data[index]
            [shown] = model.preprocessing.prepare([sample["image"]], model.image.image_size)
        except BadSample:
            continue  # the evaluation logs a warning
        pixels.append(shown)
        found.append({"index": index, "truth": names[sample["label"]]})
    if not found:
        return []
    classes = evaluation.class_vectors(model, names, evaluator.templates)
    scores = model.encode_images(np.stack(pixels)) @ classes.T
    for answer, best in zip(found, scores.argmax(1), strict=True):
        answer["answer"] = names[best]
    return found


def read(folder) -> list[dict]:
    """Returns the answers that `write` wrote into `folder`; [] if there are none."""
    path = pathlib.Path(folder) / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
