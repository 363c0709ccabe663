"""Models as others store them: read into a FLIP, written from one."""

import importlib
import os
import pathlib
import shutil

from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.model import FLIP
from flipkit.weights import tensors

# name: module with `recognises(path)`, `read(path) -> FLIP` and, where it can write,
# `write(model, path)`. Asked in this order which of them knows a path.
FORMATS = {
    "keras": "flipkit.weights.keras_file",
}


def load_pretrained(path, format: str | None = None, image_size=None) -> FLIP:
    """The model at `path`, built, with its weights, preprocessing and tokenizer.

    Args:
        path: a file or a folder on this machine.
        format: one of `FORMATS`; None finds out.
        image_size: pixels, one side or (height, width); learned positions are resampled if it is not
            the size the model was stored with. None keeps that.

    Raises:
        ConfigurationError: there is nothing, nothing known, a pickle, or tensors are missing,
            unexpected or reshaped; all are listed.
    """
    path = pathlib.Path(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UnknownName(f"No such file or folder: {path}. {nearest(path.name, siblings)}")
    model = module(format or detect(path)).read(path)
    return model if image_size is None else resized(model, image_size)


def save_as(model: FLIP, format: str, path):
    """Writes `model` to `path` as `format` has it: all of it or nothing.

    Raises:
        ConfigurationError: the format can't express the model, naming the option; it is only read;
            or there is something at `path` already.
    """
    path, writer = pathlib.Path(path), module(format)
    if not hasattr(writer, "write"):
        writing = [name for name in FORMATS if hasattr(module(name), "write")]
        raise ConfigurationError(
            f"flipkit reads {format} but doesn't write it. Written are: {', '.join(writing)}."
        )
    if path.exists():
        raise ConfigurationError(f"Expected a path where nothing is. Received: {path}, which exists.")
    if not model.built:
        model.build()
    # Keras looks at the ending.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write(model, part)
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def module(format: str):
    """The module that reads and writes `format`."""
    if format not in FORMATS:
        raise UnknownName(f"No format is called {format!r}. {nearest(format, FORMATS)}")
    return importlib.import_module(FORMATS[format])


def detect(path: pathlib.Path) -> str:
    """The name of the format that `path` is in."""
    for name in FORMATS:
        if module(name).recognises(path):
            return name
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        tensors.refuse_pickle(file)
    raise ConfigurationError(
        f"Expected weights in one of the formats {', '.join(FORMATS)}. Received: {path}, which is "
        "none of them."
    )


def resized(model: FLIP, image_size) -> FLIP:
    """A copy of `model` for pictures of another size, its learned positions resampled."""
    config = model.get_config()
    config["image"]["config"]["image_size"] = image_size
    copy = FLIP.from_config(config)
    copy.tokenizer = model.tokenizer  # with its vocabulary, which no config holds
    copy.build()
    values = {path: variable.numpy() for path, variable in tensors.weights(model).items()}
    place = "image/position"
    if place in values:
        values[place] = tensors.resample_positions(
            values[place], model.image.grid, copy.image.grid
        )
    tensors.assign(copy, values, f"the model at {model.image.image_size} pixels")
    copy.step.assign(model.step)
    return copy
