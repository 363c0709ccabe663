"""The files of a pattern: `*`, `?`, `[...]`, `**`, `~`, `{a,b}` and `{00000..00041}`."""

import glob
import os
import re

from flipkit.errors import DataError


def find_shards(path: str | list[str] | None) -> list[str]:
    """The files that match a pattern or a list of them, without repeats.

    Raises:
        DataError: a pattern, or a name from its braces, matches nothing.
    """
    if not path:
        raise DataError(
            "No data to train on: set data.path='/data/laion400m/*.tar' (tar shards) "
            "or data=captioned_shapes (built in)."
        )
    found = []
    for pattern in [path] if isinstance(path, (str, os.PathLike)) else path:
        names = expand_braces(os.path.expanduser(pattern))
        matches = [
            sorted(glob.glob(name, recursive=True))
            if glob.has_magic(name) and not os.path.exists(name)
            else [name]
            for name in names
        ]
        missing = [name for match in matches for name in match if not os.path.exists(name)]
        if missing or not any(matches):
            raise DataError(_nothing_there(pattern, missing or names))
        found += [name for match in matches for name in match]
    if folders := [name for name in found if os.path.isdir(name)]:
        raise DataError(f"Expected tar files. Received a folder: set '{folders[0]}/*.tar'")
    return list(dict.fromkeys(found))


def _nothing_there(pattern, missing):
    """The sentence for a pattern that matches nothing: the missing names, and the names that exist."""
    name = missing[0]
    if "://" in name:
        return f"Expected files of this machine: mount or copy the shards. Received: {pattern!r}"
    wanted = folder = os.path.dirname(name) or "."
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    inside = sorted(os.path.basename(p) for p in glob.glob(os.path.join(glob.escape(folder), "*")))
    there = [file for file in inside if file.endswith(".tar")] or inside
    which = f" ({len(missing)} names are missing, the first is {name!r})" if name != pattern else ""
    exists = "exists" if folder == wanted else f"does not; {folder!r} does"
    return (
        f"No file matches {pattern!r}{which}. Folder {wanted!r} {exists} and holds "
        f"{', '.join(there[:5]) or 'nothing'}{f' and {len(there) - 5} more' if there[5:] else ''}."
    )


def expand_braces(pattern: str) -> list[str]:
    """`"{08..10}{a,b}.tar"` -> `["08a.tar", "08b.tar", ..., "10b.tar"]`, as a shell does: down too."""
    inner = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not inner:
        return [pattern]
    first, last, choices = inner.groups()
    if choices is None:
        start, stop = int(first), int(last)
        way = 1 if start <= stop else -1
        options = [f"{n:0{len(first)}d}" for n in range(start, stop + way, way)]
    else:
        options = choices.split(",")
    before, after = pattern[: inner.start()], pattern[inner.end() :]
    return [name for option in options for name in expand_braces(before + option + after)]
