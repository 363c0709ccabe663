"""Recipes: finding them by path or name, setting their dials, changing their runs by path."""

import inspect
import json
import pathlib

from flipkit import modules, plugins
from flipkit.errors import (
    ConfigurationError,
    FlipkitError,
    UnknownName,
    closest,
    nearest_path,
    suggestion,
)
from flipkit.settings import REQUIRED, as_like, parse
from flipkit.sizes import sides

FILES_TOLD = 8  # of those beside a recipe that is not there


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
    kinds = inspect.signature(function).parameters
    given = {
        n: as_like(value, [own[n]], n, kinds[n].annotation)
        for n, value in values.items()
        if n in own
    }
    missing = [name for name, value in own.items() if value is REQUIRED and name not in given]
    if missing:
        raise ConfigurationError(f"This recipe needs a value: {missing[0]}=...")
    # A tiny run has phases of its own, which follow a recipe's that may be longer than a batch.
    tiny = "scale" in own and given.get("scale", own["scale"]) == "tiny"
    later = {n: given.pop(n) for n in ("pairs", "batch_size") if tiny and n in given}
    run = resized(_called(function, given), **later)
    paths = {path: value for path, value in values.items() if path not in own}
    for path in paths:
        if path.partition(".")[0] not in (heads := run.get_config()):
            known = [*own, *heads, *run.paths()]
            raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, {*own, *heads})}")
    return run.with_overrides(paths)


def resized(run, pairs=None, batch_size=None):
    """`run` over another number of pairs: each phase, and its warm-up, longer or shorter by one factor.

    Args:
        pairs: of all phases together; None leaves them.
        batch_size: of all phases; None leaves them.
    """
    factor = 1 if pairs is None else pairs / sum(phase.pairs for phase in run.phases)
    known, values = run.paths(), {}
    for i in range(len(run.phases)):
        if batch_size is not None:
            values[f"phases.{i}.batch_size"] = batch_size
        longer = (f"phases.{i}.pairs", f"phases.{i}.schedule.warmup") if pairs is not None else ()
        values |= {path: int(known[path] * factor) for path in longer if path in known}
    return run.with_overrides(values) if values else run


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


TINY = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
TINY |= {"vocab": 300, "length": 12}


def scaled(run, scale: str):
    """`run` at another size: for the `scale` of a recipe, which a test or a first look sets.

    Args:
        run: `flipkit.Run`.
        scale: "full" is the run itself. "tiny" is one of the same structure that a CPU trains in seconds:
            every phase has two steps of eight pairs; in the model, whatever is called `dim`, `depth` and
            so on is what TINY says; data and evaluations are captioned shapes, texts become pieces
            of words that are learned from them; it begins with weights of its own.

    Returns:
        A `flipkit.Run`.
    """
    if scale == "full":
        return run
    if scale != "tiny":
        raise ConfigurationError(f"Expected scale 'full' or 'tiny'. Received: {scale!r}")
    from flipkit import datasets  # a run is there, and with it Keras

    config = run.get_config()
    _shrink(config["model"])
    for phase in config["phases"]:
        if phase["config"]["image_size"] is not None:
            share = max(sides(phase["config"]["image_size"])) / max(
                sides(run.model.image.image_size)
            )
            patches = max(1, round(share * TINY["image_size"] / TINY["patch_size"]))
            phase["config"]["image_size"] = patches * TINY["patch_size"]
    labelled = run.model.reads == "label"
    values = {
        # Of the shapes the tests have labels; pieces of words need no file, they are learned.
        **({"model.classes": 512} if labelled else {"model.tokenizer": "wordpiece"}),
        "data": datasets.CaptionedShapes("test" if labelled else "train", 64, image_size=32),
        "init": None,
        "feed.threads": 1,
        "feed.workers": 0,
        "log_every": 1,
        "checkpoint_every": 0,
        "evaluate_every": 0,
    }
    known = run.paths()
    for i in range(len(run.phases)):
        values |= {f"phases.{i}.pairs": 16, f"phases.{i}.batch_size": 8}
        if f"phases.{i}.schedule.warmup" in known:
            values[f"phases.{i}.schedule.warmup"] = 8
    for name, evaluator in run.evaluators.items():
        split = getattr(getattr(evaluator, "data", None), "split", "test")
        values[f"evaluators.{name}.data"] = datasets.CaptionedShapes(split, 16, image_size=32)
        if f"evaluators.{name}.classnames" in known:
            values[f"evaluators.{name}.classnames"] = None  # the shapes have their own
    return type(run).from_config(config).with_overrides(values)


def _shrink(node):
    """Makes the sizes in a config, and in all that is in it, those of TINY."""
    if isinstance(node, dict):
        for name, value in node.items():
            sized = name in TINY and value is not None and not isinstance(value, dict)
            node[name] = TINY[name] if sized else value
            _shrink(value)
    elif isinstance(node, list):
        for item in node:
            _shrink(item)


def summary(function) -> str:
    """First line of the recipe file's docstring."""
    text = inspect.getmodule(function).__doc__ or function.__doc__ or ""
    return text.strip().splitlines()[0] if text.strip() else ""
