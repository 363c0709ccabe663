"""Presets in Keras's form: a folder of config.json, model.weights.h5 and the tokenizer's files."""

import json
import pathlib
import tempfile

import h5py

from flipkit import plugins, registry
from flipkit.errors import ConfigurationError
from flipkit.models.flip import FLIP
from flipkit.weights.tensors import assign, differences, refuse, weights

_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.weights.h5", "assets/tokenizer"


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder that `write` made."""
    try:
        stored = json.loads((path / _CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    config = stored.get("config") if isinstance(stored, dict) else None
    return isinstance(config, dict) and {"image", "text", "masker"} <= config.keys()


def write(model: FLIP, path: pathlib.Path):
    """Makes the folder `path`, from which `read` makes an equal model."""
    path.mkdir()
    stored = registry.serialize(model)
    for state in (
        "build_config",
        "compile_config",
    ):  # a preset is for any use, not to resume training
        stored.pop(state, None)
    # A compiled model would store its optimizer too.
    plain = FLIP.from_config(model.get_config())
    plain.build()
    values = {name: variable.numpy() for name, variable in weights(model).items()}
    assign(plain, {**values, "step": model.step.numpy()}, "the model")
    plain.save_weights(path / _WEIGHTS)
    model.save_assets(path / _TOKENIZER)
    (path / _CONFIG).write_text(json.dumps(stored, indent=1), encoding="utf-8")


def read(path: pathlib.Path) -> FLIP:
    """The model in the folder.

    Raises:
        ConfigurationError: files are missing or damaged, or the arrays are not the model's; lists them.
    """
    plugins.import_components()
    stored = json.loads((path / _CONFIG).read_bytes())
    try:
        model = registry.deserialize(stored)
    except (KeyError, TypeError, ValueError) as problem:
        raise ConfigurationError(f"{path / _CONFIG} describes no model: {problem}") from problem
    if (path / _TOKENIZER).is_dir():
        model.load_assets(path / _TOKENIZER)
    model.build()
    file = path / _WEIGHTS
    found = arrays(file)
    if len(found) != len(model.variables):
        _refuse(model, found, file)
    try:
        model.load_weights(file)
    except (OSError, ValueError):
        _refuse(model, found, file)
        raise
    return model


def arrays(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in an HDF5 file."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item.shape

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError) as problem:
        raise ConfigurationError(
            f"Expected an HDF5 file. Received: {path}, which is missing, cut short or none: {problem}"
        ) from problem
    return found


def _refuse(model, found, path):
    """Lists where `found` differs from the arrays that Keras would write of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / _WEIGHTS
        model.save_weights(whole)
        refuse(differences(arrays(whole), found), f"The arrays of {path} are not its model's")
