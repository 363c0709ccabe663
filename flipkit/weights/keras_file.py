"""flipkit's own `.keras` files: architecture, weights, preprocessing and tokenizer in one."""

import json
import pathlib
import zipfile

import keras

from flipkit import plugins, registry
from flipkit.errors import ConfigurationError


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a `.keras` file, or the folder of a finished run with one in it."""
    return path.suffix == ".keras" or (path / "model.keras").is_file()


def read(path: pathlib.Path):
    """The model in the file, of whatever class."""
    return load_model(_file(path))


def describe(path: pathlib.Path):
    """The model that the file's config describes: not built, without weights and vocabulary."""
    if not zipfile.is_zipfile(_file(path)):
        return read(path)  # which raises the error
    plugins.import_components()
    with zipfile.ZipFile(_file(path)) as archive:
        stored = json.loads(archive.read("config.json"))
    for state in ("build_config", "compile_config"):
        stored.pop(state, None)
    return registry.deserialize(stored)


def write(model, path: pathlib.Path):
    """Saves the model as `path`, which ends in .keras."""
    with registry.without_tensorflow():
        model.save(path)


def _file(path):
    return path / "model.keras" if path.is_dir() else path


def load_model(path, compile=False):
    """The model in a `.keras` file, with components of plugins.

    Args:
        path: a file that `model.save` or a run wrote.
        compile: whether optimizer and loss come back too, for training on.
    """
    plugins.import_components()
    if not pathlib.Path(path).is_file():
        raise ConfigurationError(f"Expected a .keras file. Received: {path}, which does not exist.")
    if not zipfile.is_zipfile(path):
        raise ConfigurationError(f"Expected a .keras file. Received: {path}, which is none.")
    return keras.saving.load_model(path, compile=compile)
