"""Facts about plugins from the process and its environment, before one is imported."""

import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
from typing import Any

from flipkit.plugins.offers import normal_name


def may_name(point, hook: str) -> bool:
    """Whether an entry point's module may offer something through `hook`, from its source text.

    True if the text can't be read, or takes names of other modules by `import *`.
    """
    top, *rest = point.module.split(".")
    try:
        spec: Any = importlib.util.find_spec(top)  # imports nothing, as it would for a dotted name
        file = pathlib.Path(spec.origin if not rest else spec.submodule_search_locations[0])
        if rest:
            file = file.joinpath(*rest)
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        text = file.read_text(encoding="utf-8")
    except (AttributeError, ImportError, OSError, TypeError, ValueError):
        return True
    return hook in text or "import *" in text


def names_in(variable: str) -> set[str] | None:
    """The names in an environment variable, divided by commas; None if it is not set."""
    value = os.environ.get(variable)
    return None if value is None else {normal_name(n) for n in value.split(",") if n.strip()}


def jax_started() -> bool:
    """Whether a JAX backend runs in this process. Never imports JAX.

    JAX 0.10 has no public function for this. If a later one drops the private one, flipkit no longer checks
    plugins for it, and a test here fails.
    """
    bridge = sys.modules.get("jax._src.xla_bridge")
    return getattr(bridge, "backends_are_initialized", lambda: False)()
