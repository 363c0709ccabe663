"""A model as a folder: its config, its tokenizer's files, and a .npy file per variable, by its path."""

import json
import pathlib

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
import numpy as np

CONFIG = "flipkit_numpy.json"


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder that `write` made."""
    return (path / CONFIG).is_file()


def write(model, path: pathlib.Path):
    """Makes the folder `path`, which `flipkit.save_as` renames when it is whole."""
    path.mkdir()
    flipkit.files.write_json(path / CONFIG, flipkit.registry.serialize(model))
    for name, variable in variables(model).items():
        file = path / "variables" / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, keras.ops.convert_to_numpy(variable).astype(variable.dtype))
    model.save_assets(path / "assets")


def read(path: pathlib.Path):
    """The model in the folder.

    Raises:
        ConfigurationError: the folder lacks a variable of its model, or has one of another shape.
    """
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    model = flipkit.registry.deserialize({k: v for k, v in config.items() if k != "compile_config"})
    if (path / "assets").is_dir():
        model.load_assets(path / "assets")
    model.build()
    for name, variable in variables(model).items():
        file = path / "variables" / f"{name}.npy"
        value = np.load(file, mmap_mode="r") if file.is_file() else None
        if value is None or value.shape != tuple(variable.shape):
            raise flipkit.ConfigurationError(
                f"Expected an array of shape {tuple(variable.shape)} in {file}. Received: "
                f"{'no file' if value is None else value.shape}"
            )
        variable.assign(value)
    return model


def variables(model):
    """{canonical path: variable}."""
    return {flipkit.paths.canonical(variable.path): variable for variable in model.variables}
