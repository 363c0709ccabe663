"""Finding recipes: by path, by name, from a run.json."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from flipkit import files, plugins
from flipkit.errors import (
    ConfigurationError,
    UnknownName,
    closest,
    suggestion,
)
from flipkit.plugins import modules

FILES_TOLD = 8  # of those beside a recipe that is not there


def names() -> list[str]:
    """Every recipe that can be run by name: flipkit's own and the plugins'."""
    return plugins.names("recipes")


def load(identifier) -> Callable[..., Any]:
    """The recipe function that `identifier` means.

    Args:
        identifier: a path to a `.py` file with a function `recipe`, a shipped name, a plugin's
            name, or a `run.json`.

    Raises:
        UnknownName: no such file or name.
        ConfigurationError: the file has no function `recipe`.
    """
    path = pathlib.Path(identifier)
    if path.suffix == ".json" and path.is_file():
        return _recorded(path)
    if path.suffix == ".py" and path.is_file():
        return _function(modules.from_file(path), path)
    if path.suffix in (".py", ".json") or len(path.parts) > 1 or identifier not in names():
        raise UnknownName(_no_recipe(path))
    found = plugins.component("recipes", identifier)
    return _function(found, identifier) if inspect.ismodule(found) else found


def _no_recipe(path):
    """What to say of a recipe that is nowhere: the nearest file beside it, or the nearest name."""
    if (record := path / "run.json").is_file():
        return f"{path} is the folder of a run, whose recipe is {str(record)!r}."
    file = path.suffix in (".py", ".json") or len(path.parts) > 1
    beside = [p for pattern in ("*.py", "run.json") for p in sorted(path.parent.glob(pattern))]
    meant = {name: name for name in names()}
    meant |= {p.stem: str(p) for p in beside} | {p.name: str(p) for p in beside}
    close = closest(path.name, meant) or closest(path.stem, meant)
    told = f"No recipe file: {path}." if file else f"Unknown recipe: {str(path)!r}."
    if file and not path.parent.is_dir():
        told += f" There is no folder {path.parent}."
    elif file and beside:
        rest = ", ..." if len(beside) > FILES_TOLD else ""
        told += f" Beside it: {', '.join(p.name for p in beside[:FILES_TOLD])}{rest}."
    return f"{told} {suggestion(close and meant[close], names())}"


def _function(module, where):
    function = getattr(module, "recipe", None)
    if not inspect.isfunction(function):
        raise ConfigurationError(
            f"{where} has no function `recipe`. A recipe is "
            "`def recipe(...): return flipkit.Run(...)`"
        )
    return function


def _recorded(path):
    try:
        config = dict(files.read_json(path)["run"])
    except (ValueError, KeyError, TypeError) as problem:
        raise ConfigurationError(
            f"Expected the run.json that a run wrote into its workdir. Received: {path}, which "
            f"holds none ({type(problem).__name__}: {problem})."
        ) from problem

    def recipe():
        from flipkit import training

        plugins.import_components()
        return training.Run.from_config(config)

    return recipe


def summary(function) -> str:
    """First line of the recipe file's docstring."""
    text = inspect.getmodule(function).__doc__ or function.__doc__ or ""
    return text.strip().splitlines()[0] if text.strip() else ""
