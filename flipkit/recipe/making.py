"""Makes a run from a recipe function and settings."""

import inspect

from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest_path
from flipkit.settings import REQUIRED, as_like, parse


def dials(function) -> dict[str, object]:
    """Returns a recipe's arguments: {name: default}, REQUIRED for one without a default."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: p.default for p in named}


def make(function, settings: dict[str, str]):
    """Calls a recipe function; returns its run with `settings` applied.

    An argument of the function is passed to it, so that derived values change too. Any other name is
    a dotted path into the run.

    Raises:
        UnknownName: the recipe has no such argument, and the run no such path.
        ConfigurationError: the recipe raises an error, needs a value, or returns no run.
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
    # A tiny run has its own phases, so `pairs` and `batch_size` are applied to the run afterwards.
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
    """Returns `run` over another number of pairs; scales each phase, and its warm-up, by one factor.

    Args:
        pairs: of all phases together; None keeps them.
        batch_size: of all phases; None keeps it.
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
            raise  # a mistake in the recipe, whose author needs the traceback
        shown = " ".join(f"{name}={value!r}" for name, value in given.items())
        raise ConfigurationError(f"The recipe can't be made with {shown}. {problem}") from problem
    if not hasattr(run, "with_overrides"):
        raise ConfigurationError(f"Expected a recipe to return a flipkit.Run. Received: {run!r}")
    return run
