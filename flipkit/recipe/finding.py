"""Finds recipes: by path, by name, from a `run.json`."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from flipkit import files, plugins
from flipkit.errors import ConfigurationError, UnknownName, closest, suggestion
from flipkit.plugins import modules

FILES_LISTED = 8  # in the message for a missing recipe file, of the files beside it


def names() -> list[str]:
    """Returns the names of all recipes: flipkit's own and the plugins'."""
    return plugins.names("recipes")


def load(identifier) -> Callable[..., Any]:
    """Returns the recipe function of `identifier`.

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
    """Returns the message for a missing recipe, with the nearest file beside it or the nearest name."""
    if (record := path / "run.json").is_file():
        return f"{path} is the folder of a run, whose recipe is {str(record)!r}."
    file = path.suffix in (".py", ".json") or len(path.parts) > 1
    beside = [p for pattern in ("*.py", "run.json") for p in sorted(path.parent.glob(pattern))]
    meant = {name: name for name in names()}
    meant |= {p.stem: str(p) for p in beside} | {p.name: str(p) for p in beside}
    close = closest(path.name, meant) or closest(path.stem, meant)
    text = f"No recipe file: {path}." if file else f"Unknown recipe: {str(path)!r}."
    if file and not path.parent.is_dir():
        text += f" There is no folder {path.parent}."
    elif file and beside:
        rest = ", ..." if len(beside) > FILES_LISTED else ""
        text += f" Beside it: {', '.join(p.name for p in beside[:FILES_LISTED])}{rest}."
    return f"{text} {suggestion(close and meant[close], names())}"


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
    """Returns the first line of the docstring of the recipe's file."""
    text = inspect.getmodule(function).__doc__ or function.__doc__ or ""
    return text.strip().splitlines()[0] if text.strip() else ""
