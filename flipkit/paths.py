"""Canonical paths of variables, `image/block_07/mlp/up/kernel`, and patterns that match them."""

import fnmatch
from collections.abc import Iterable, Sequence

from flipkit.errors import ConfigurationError, nearest


def canonical(path: str) -> str:
    """A Keras path without the model's own name: `flip/image/class_token` -> `image/class_token`."""
    return path.split("/", 1)[-1]


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` matches whole, neighbouring parts of `path`; `*` and `?` work inside a part.

    `"bias"` matches `text/block_00/mlp/up/bias`, `"image/block_*"` everything in the image tower's
    blocks; `"scale"` does not match `logit_scale`.
    """
    wanted, parts = pattern.strip("/").split("/"), path.split("/")
    starts = range(len(parts) - len(wanted) + 1)
    return any(
        all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts[i:], wanted, strict=False))
        for i in starts
    )


def select(patterns: Sequence[str], paths: Iterable[str], *, role: str) -> set[str]:
    """The paths that any of `patterns` matches.

    Args:
        role: the argument that holds the patterns, for the error.

    Raises:
        ConfigurationError: a pattern matches nothing, so that it has no effect.
    """
    paths = list(paths)
    chosen = set()
    for pattern in patterns:
        found = {path for path in paths if matches(pattern, path)}
        if not found:
            wanted = [part for part in pattern.split("/") if part.strip("*")]
            near = nearest("/".join(wanted), _runs(paths, len(wanted)), _runs(paths, 1))
            raise ConfigurationError(
                f"Every pattern in {role} must match a variable. Received: {pattern!r}, which "
                f"matches none. Parts of paths: {near}"
            )
        chosen |= found
    return chosen


def checked_patterns(role: str, patterns) -> list[str]:
    """`patterns` as a list; a single string makes a list of one.

    Raises:
        ConfigurationError: they are no strings.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, (list, tuple)) or not all(isinstance(p, str) for p in listed):
        raise ConfigurationError(f"Expected patterns of paths. Received: {role}={patterns!r}")
    return list(listed)


def _runs(paths, length):
    """The texts of every `length` neighbouring parts of the paths."""
    parts = [path.split("/") for path in paths]
    starts = [(path, i) for path in parts for i in range(len(path) - length + 1)]
    return {"/".join(path[i : i + length]) for path, i in starts}
