"""Python files imported by their path, as a script is run: their neighbours are importable."""

import hashlib
import importlib.util
import pathlib
import sys


def from_file(path):
    """The module in the `.py` file `path`.

    Neither it nor a neighbour that it imports is in `sys.modules` under its own stem, so that a file
    `queue.py` hides no module of Python's, and two files `mine.py` in two folders don't replace each other.
    """
    path = pathlib.Path(path).resolve()
    folder, before = str(path.parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(_name(path), path)
        module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
        sys.modules[module.__name__] = module  # so that classes written in it can be found again
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            _rename(name, path.parent)
    return module


def _rename(name, folder):
    """Renames a module that was imported by its stem from `folder`, as `from_file` names it."""
    module = sys.modules[name]
    file = pathlib.Path(getattr(module, "__file__", None) or "/")
    if "." not in name and file == folder / f"{name}.py":
        del sys.modules[name]
        sys.modules[_name(file)] = module


def _name(path):
    """A name for the module in a file, unlike that of any other: `mine_3f2a91c0`."""
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
