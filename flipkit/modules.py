"""Python files imported by their path, as a script is run: their neighbours are importable."""

import importlib.util
import pathlib
import sys


def from_file(path):
    """The module in the `.py` file `path`, known to `sys.modules` by the file's name."""
    path = pathlib.Path(path)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
        sys.modules[path.stem] = module  # so that classes written in it can be found again
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module
