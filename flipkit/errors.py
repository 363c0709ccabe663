"""The mistakes people can mend: each says what was expected, what came, and the nearest right thing."""

import difflib
from collections.abc import Iterable


class FlipkitError(ValueError):
    """Something the user can put right. The command line prints it without a traceback."""

    # So that Keras doesn't wrap one that a layer raises into what the layer was called with.
    _keras_call_info_injected = True


class ConfigurationError(FlipkitError):
    """A setting has a value it can't have, or two settings contradict each other."""


class UnknownName(ConfigurationError):
    """A name that nothing answers to; the message tells the nearest known one."""


class DataError(FlipkitError):
    """The data as a whole can't be used: no shards, a shard cut short, too many bad samples."""


class BadSample(FlipkitError):
    """One sample can't be used. A Feed replaces it, counts it and records why."""


class PluginError(FlipkitError):
    """A plugin is broken; the message names distribution, version, entry point, hook and fix."""


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """A sentence for an error: the known name nearest to `name`, and all of them, or those `listed`."""
    known = sorted(known)
    lowered = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f"Did you mean {lowered[close[0]]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known if listed is None else sorted(listed)) or 'none'}."
