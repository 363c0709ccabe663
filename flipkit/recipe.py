"""Recipes: finding them by path or name, setting their dials, changing their runs by path."""

import inspect
import json
import pathlib

from flipkit import modules, plugins
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest
from flipkit.settings import REQUIRED, as_like, parse


def names() -> list[str]:
    """Every recipe that can be run by name: flipkit's own and the plugins'."""
    return plugins.names("recipes")


def load(identifier):
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
    if path.suffix == ".py" or len(path.parts) > 1:
        raise UnknownName(f"No recipe file: {identifier}. {nearest(path.stem, names())}")
    if identifier not in names():
        raise UnknownName(f"Unknown recipe: {identifier!r}. {nearest(identifier, names())}")
    found = plugins.component("recipes", identifier)
    return _function(found, identifier) if inspect.ismodule(found) else found


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
        config = dict(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (ValueError, KeyError, TypeError) as problem:
        raise ConfigurationError(
            f"Expected the run.json that a run wrote into its workdir. Received: {path}, which "
            f"holds none ({type(problem).__name__}: {problem})."
        ) from problem

    def recipe():
        from flipkit import evaluation, model, training  # noqa: F401  # their classes are in a config

        plugins.listing()  # imports every component: Keras finds only classes that were registered
        return training.Run.from_config(config)

    return recipe


def dials(function) -> dict[str, object]:
    """A recipe's own arguments: {name: default}, REQUIRED for one without."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: p.default for p in named}


def make(function, settings: dict[str, str]):
    """The run that a recipe function describes, with `settings` applied.

    A name that the function takes goes to it, so that what it derives follows; any other is a
    dotted path into the run.

    Raises:
        UnknownName: no such argument or path.
    """
    own = dials(function)
    values = {name: parse(text) for name, text in settings.items()}
    given = {n: as_like(value, [own[n]], n) for n, value in values.items() if n in own}
    missing = [name for name, value in own.items() if value is REQUIRED and name not in given]
    if missing:
        raise ConfigurationError(f"This recipe needs a value: {missing[0]}=...")
    run = _called(function, given)
    paths = {path: value for path, value in values.items() if path not in own}
    for path in paths:
        if "." not in path and path not in run.get_config():
            raise UnknownName(f"Unknown: {path!r}. {nearest(path, {*own, *run.get_config()})}")
    return run.with_overrides(paths)


def _called(function, given):
    try:
        run = function(**given)
    except FlipkitError:
        raise
    except (ArithmeticError, TypeError, ValueError) as problem:
        if not given:
            raise  # the recipe's own mistake, which its author wants to see in full
        told = " ".join(f"{name}={value!r}" for name, value in given.items())
        raise ConfigurationError(f"The recipe can't be made with {told}. {problem}") from problem
    if not hasattr(run, "with_overrides"):
        raise ConfigurationError(f"Expected a recipe to return a flipkit.Run. Received: {run!r}")
    return run


def summary(function) -> str:
    """First line of the recipe file's docstring."""
    text = inspect.getmodule(function).__doc__ or function.__doc__ or ""
    return text.strip().splitlines()[0] if text.strip() else ""
