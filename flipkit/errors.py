"""Errors that users can correct: each message has what was expected, what came and the nearest name."""

import difflib
from collections.abc import Iterable


class FlipkitError(ValueError):
    """An error that the user can correct. The command line prints it without a traceback."""


class ConfigurationError(FlipkitError):
    """A setting has a value it can't have, or two settings contradict each other."""


class UnknownName(ConfigurationError):
    """A name that is not registered; the message names the nearest known one."""


class DataError(FlipkitError):
    """The data as a whole can't be used: no shards, a shard cut short, too many bad samples."""


class BadSample(FlipkitError):
    """One sample can't be used. A Feed replaces it, counts it and records why."""


class PluginError(FlipkitError):
    """A plugin is broken; the message names distribution, version, entry point, hook and fix."""


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """A sentence for an error: the known name nearest to `name`, and all names, or those `listed`."""
    known = sorted(known)
    return suggestion(closest(name, known), known if listed is None else listed)


def nearest_path(path: str, known: Iterable[str], listed: Iterable[str]) -> str:
    """A sentence as that of `nearest`, for a dotted path: the hint is a whole known path.

    A path with the same last part comes first, the shortest of them: `mask_ratio` means `model.mask_ratio`.
    """
    known = list(known)
    last = path.rpartition(".")[2]
    ends = [option for option in known if f".{option}".endswith(f".{path}")]
    ends = ends or [option for option in known if option.rpartition(".")[2] == last != path]
    if len(ends) > 1:  # of several the one that the whole path is like, else the shortest
        ends = [closest(path, ends, cutoff=0.8) or min(ends, key=lambda end: end.count("."))]
    whole = ends[0] if ends else closest(path, known, cutoff=0.8)
    if whole is None:
        parts: dict[str, str] = {}
        for option in sorted(known, key=lambda option: option.count(".")):
            parts.setdefault(option.rpartition(".")[2], option)
        whole = parts.get(closest(last, parts, cutoff=0.7) or "") or closest(path, known)
    return suggestion(whole, listed)


def closest(name: str, known: Iterable[str], cutoff=0.5) -> str | None:
    """The name in `known` most like `name`, if one is like it by `cutoff`, from 0 to 1."""
    lowered = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=cutoff)
    return lowered[close[0]] if close else None


def suggestion(hint: str | None, listed: Iterable[str]) -> str:
    """A sentence for an error: the name that the user may have meant, if any, and the known names."""
    text = "" if hint is None else f"Did you mean {hint!r}? "
    return f"{text}Known: {', '.join(sorted(listed)) or 'none'}."
