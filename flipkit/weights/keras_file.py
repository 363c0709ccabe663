"""flipkit's own `.keras` files: architecture, weights, preprocessing and tokenizer in one."""

import pathlib

from flipkit.errors import ConfigurationError
from flipkit.model import FLIP, load_model


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a `.keras` file, or the folder of a finished run with one in it."""
    return path.suffix == ".keras" or (path / "model.keras").is_file()


def read(path: pathlib.Path) -> FLIP:
    """The model in the file."""
    model = load_model(path / "model.keras" if path.is_dir() else path)
    if not isinstance(model, FLIP):
        raise ConfigurationError(f"Expected a flipkit.FLIP in {path}. Received: {type(model)}")
    return model


def write(model: FLIP, path: pathlib.Path):
    """Saves the model as `path`, which ends in .keras."""
    model.save(path)
