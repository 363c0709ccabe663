"""Results of evaluations in one JSON file: an entry for each model, evaluator, data and settings."""

import contextlib
import json
import os
import pathlib

from flipkit import files
from flipkit.errors import ConfigurationError

NAME = "evaluations.json"
_KEY = ("model", "step", "evaluator", "settings")


def place(model) -> pathlib.Path:
    """The file for the results of a MODEL: in a run's own folder, else in the current one.

    flipkit writes nothing into a folder that it did not make.
    """
    path = pathlib.Path(model)
    folder = path.parent if path.suffix == ".keras" else path
    return (folder if (folder / "run.json").is_file() else pathlib.Path()) / NAME


def read(path: pathlib.Path) -> list[dict]:
    """The entries in a file, oldest first; [] if there is no file.

    Raises:
        ConfigurationError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        entries = files.read_json(path)["results"]
        if all(isinstance(entry, dict) and {*_KEY, "found"} <= entry.keys() for entry in entries):
            return entries
        problem = "an entry lacks its key"
    except (KeyError, OSError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ConfigurationError(
        f"Expected what evaluations found. Received: {path}, which holds something else ({problem}). "
        "Move it away, or name another file with --results."
    )


def keep(path: pathlib.Path, entry: dict) -> list[dict]:
    """Puts `entry` into the file, in place of one with the same key; returns all entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = json.loads(json.dumps(entry))  # as a file has it, for comparing
    with _alone(path.parent):
        kept = [old for old in read(path) if any(old[key] != entry[key] for key in _KEY)]
        kept.append(entry)
        files.write_json(path, {"results": kept})
    return kept


@contextlib.contextmanager
def _alone(folder):
    """Locks the folder against other processes, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
