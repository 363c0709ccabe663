"""Models in other projects' formats: read into a FLIP, written from one."""

import inspect
import pathlib
from typing import Any

import numpy as np
from absl import logging

from flipkit import files, plugins
from flipkit.checks import sides
from flipkit.errors import ConfigurationError
from flipkit.models.flip import FLIP
from flipkit.plugins import builtins
from flipkit.weights import kinds, tensors
from flipkit.weights.keras_file import load_model as load_model

TOLERANCE = 1e-5  # between embeddings, where a sum is ordered differently; float32 alone makes 1e-6


def load_pretrained(path, format: str | None = None, image_size=None, **options) -> FLIP:
    """The model at `path`, built, with its weights, preprocessing and tokenizer.

    Args:
        path: a file or a folder on this machine.
        format: one of `formats()`; None detects it.
        image_size: pixels, one side or (height, width); learned positions are resampled if it is not
            the size the model was stored with. None keeps that.
        options: further arguments of a format's `read`, such as `heads` where a file lacks them.

    Raises:
        ConfigurationError: there is no file, no known format, a pickle, or tensors are missing, unexpected
            or reshaped; the message lists all.
    """
    found = _there(path)
    model = module(format or detect(found)).read(found, **options)
    if not isinstance(model, FLIP):
        raise ConfigurationError(
            f"Expected a flipkit.FLIP in {path}. Received: {type(model).__name__}"
        )
    return model if image_size is None else resized(model, image_size)


def load_any(path, tokenizer: str | None = None):
    """The MODEL of a command line: as `load_pretrained`, of any class.

    Args:
        path: a file or a folder: `kinds.KINDS`.
        tokenizer: a file, a folder or a name, for a model that lies without its tokenizer.

    Raises:
        ConfigurationError: as `load_pretrained`.
    """
    found = _there(path)
    model = module(detect(found)).read(found)
    if tokenizer is not None:
        if not hasattr(model, "tokenizer"):
            raise ConfigurationError(
                f"A {type(model).__name__} reads no text: leave out model.tokenizer={tokenizer}"
            )
        kinds.give_tokenizer(model, tokenizer)
    return model


def _there(path) -> pathlib.Path:
    found = pathlib.Path(path)
    if not found.exists():
        raise kinds.missing(found, str(path))
    return found


def describe(path) -> Any:
    """The model at `path` for recipes, which need its towers: without its weights where the format can
    read the one without the other.

    Raises:
        ConfigurationError: as `load_pretrained`.
    """
    found = pathlib.Path(path)
    reader = module(detect(found)) if found.exists() else None
    return reader.describe(found) if hasattr(reader, "describe") else load_any(path)


def save_as(model: FLIP, format: str, path, verify: bool = False):
    """Writes `model` to `path` in `format`: all of it or nothing.

    Args:
        model: what to write; settings of training alone, such as dropout, may be left out.
        format: one of `formats()` that can be written.
        path: a file or a folder, where nothing is yet.
        verify: whether to read it back and compare it by `difference` before it gets its name.

    Raises:
        ConfigurationError: the format can't express the model (the message names the option) or is only
            read; there is something at `path` already; or the model read back has other embeddings.
    """
    path, writer = pathlib.Path(path), module(format)
    if not hasattr(writer, "write"):
        raise ConfigurationError(
            f"flipkit reads {format} but doesn't write it. Written are: {', '.join(written())}."
        )
    if path.exists():
        raise ConfigurationError(
            f"Expected a path where nothing is. Received: {path}, which exists."
        )
    if not model.built:
        model.build()
    with files.whole(path) as part:
        writer.write(model, part)
        if verify and not (found := difference(model, writer.read(part))) <= TOLERANCE:
            raise ConfigurationError(
                f"Written as {format}, the model has other embeddings when it is read back: they differ "
                f"by up to {found:.2g}. Expected at most {TOLERANCE:g}. Nothing was kept."
            )


def formats() -> list[str]:
    """The names of all formats, flipkit's own first: the order in which `detect` tries them."""
    own = list(builtins.flipkit_formats())
    return [*own, *(name for name in plugins.names("formats") if name not in own)]


def written() -> list[str]:
    """The formats that can be written."""
    return [name for name in formats() if hasattr(module(name), "write")]


def module(format: str) -> Any:
    """The module that reads and writes `format`.

    Raises:
        UnknownName: no format has that name; the message names the nearest one.
    """
    if format in builtins.flipkit_formats():
        return plugins.built_in("formats", format)
    found = plugins.component("formats", format)
    return found() if inspect.isclass(found) else found


def detect(path: pathlib.Path) -> str:
    """The name of the format that `path` is in."""
    name = _format_of(path)
    if name is None:
        raise kinds.unknown(path, formats(), lambda other: _format_of(other) is not None)
    return name


def _format_of(path):
    own = (name for name in builtins.flipkit_formats() if module(name).recognises(path))
    return next(own, None) or next((n for n in plugins.names("formats") if _is(path, n)), None)


def _is(path, name):
    """Whether `path` is in a plugin's format; a broken plugin recognises nothing."""
    try:
        return module(name).recognises(path)
    except Exception as problem:
        logging.warning("%s", plugins.note_problem("formats", name, problem))
        return False


def difference(model: FLIP, other: FLIP) -> float:
    """How far the embeddings of two models are apart, in float32: the largest difference of two numbers,
    of 4 fixed random pairs.
    """
    rng = np.random.default_rng(0)
    size = sides(model.image.image_size)
    batch = {
        "image": rng.integers(0, 256, (4, *size, 3), "uint8"),
        "text": rng.integers(0, model.text.vocab, (4, model.text.length), "int32"),
    }
    found, expected = (in_float32(each)(batch) for each in (model, other))
    apart = [np.abs(np.asarray(found[key]) - np.asarray(expected[key])).max() for key in found]
    return float(max(apart))


def in_float32(model: FLIP) -> FLIP:
    """`model` itself if it computes in float32, else a copy that does."""

    def plain(config):
        if isinstance(config, dict):
            policy = config.get("class_name") == "DTypePolicy"
            return "float32" if policy else {key: plain(value) for key, value in config.items()}
        return [plain(value) for value in config] if isinstance(config, list) else config

    if model.image.compute_dtype == model.text.compute_dtype == model.compute_dtype == "float32":
        return model
    copy = FLIP.from_config(plain(model.get_config()))
    copy.build()
    values = {path: variable.numpy() for path, variable in tensors.weights(model).items()}
    tensors.assign(copy, values, "the model")
    return copy


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
        values[place] = tensors.resample_positions(values[place], model.image.grid, copy.image.grid)
    tensors.assign(copy, values, f"the model at {model.image.image_size} pixels")
    copy.step.assign(model.step)
    return copy
