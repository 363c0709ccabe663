"""A recipe function and settings to a run."""

import inspect

from flipkit.errors import (
    ConfigurationError,
    FlipkitError,
    UnknownName,
    nearest_path,
)
from flipkit.settings import REQUIRED, as_like, parse


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
