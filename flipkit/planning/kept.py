"""Results of compiles, kept on disk: a program that was compiled once is not compiled again."""

import hashlib
import importlib.metadata
import json

from absl import logging

from flipkit import files, process


class Kept:
    """A folder of results, one file for a program on a topology under one compiler.

    The key is the text of the traced program itself. To trace it again takes seconds, to compile it
    minutes. A key of settings would be quicker still, and wrong after a change of flipkit, of a plugin or
    of Keras.

    Args:
        on_disk: whether it reads and writes files; otherwise it knows what it was given.
    """

    def __init__(self, on_disk=True):
        self.folder = process.cache_folder("plans") if on_disk else None
        self.known: dict[str, dict] = {}

    def key(self, text: str, topology: str) -> str:
        """Returns the name of the result of a program.

        Args:
            text: the program, as StableHLO.
            topology: name of the topology.
        """
        compiler = {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "flipkit")}
        told = json.dumps([topology, compiler], sort_keys=True)
        return hashlib.sha256(f"{told}\n{text}".encode()).hexdigest()[:32]

    def get(self, key: str) -> dict | None:
        """Returns a result, or None; a file that can't be read is mentioned and taken for none."""
        path = self.folder and self.folder / f"{key}.json"
        if key in self.known or path is None or not path.exists():
            return self.known.get(key)
        try:
            found = files.read_json(path)
            if not isinstance(found, dict) or "fits" not in found:
                raise ValueError("no result of a compile")
        except (OSError, ValueError) as problem:
            logging.warning("%s is not read (%s), and made again.", path, problem)
            return None
        return found

    def put(self, key: str, result: dict):
        """Keeps a result; a folder that can't be written is mentioned."""
        self.known[key] = result
        if self.folder is None:
            return
        try:
            files.write_json(self.folder / f"{key}.json", result)
        except OSError as problem:
            logging.warning("The plan is not kept: %s", problem)


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
