"""The folder of a run that is not finished: run.json beside Orbax checkpoints."""

import pathlib
from typing import Any

from flipkit import files, plugins, registry
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical
from flipkit.records.checkpoints import Checkpoints
from flipkit.weights.tensors import assign, weights


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is the workdir of a run."""
    return (path / "run.json").is_file()


def read(path: pathlib.Path) -> Any:
    """The model at the newest checkpoint, with the averages of its weights if there are any.

    Raises:
        ConfigurationError: there is no checkpoint yet, run.json can't be read, or the checkpoint is not
            of the model that it describes.
    """
    plugins.import_components()
    try:
        run = files.read_json(path / "run.json")["run"]
        model = registry.deserialize(run["model"])
    except (KeyError, OSError, TypeError, ValueError) as problem:
        raise ConfigurationError(
            f"Expected the workdir of a run. Received: {path}, whose run.json describes no model "
            f"({type(problem).__name__}: {problem})"
        ) from problem
    if model.seed is None:
        model.seed = run.get("seed")  # as a run does when it starts
    if getattr(model, "tokenizer", None) is not None and (path / "tokenizer").is_dir():
        model.tokenizer.load_assets(path / "tokenizer")
    model.build()
    if not (path / "checkpoints").is_dir():
        raise ConfigurationError(f"The run in {path} has no checkpoint yet.")
    with Checkpoints(path / "checkpoints", read_only=True) as saved:
        if saved.latest() is None:
            raise ConfigurationError(f"The run in {path} has no checkpoint yet.")
        values = saved.weights(model)
        source = f"the checkpoint of step {saved.latest()} in {path}"
    # Another run does not resume the random numbers of foreign layers.
    states = (
        {canonical(variable.path) for variable in model.variables} - {"step"} - {*weights(model)}
    )
    assign(model, {name: value for name, value in values.items() if name not in states}, source)
    return model
