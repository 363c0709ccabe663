"""Offers of plugins, their sources and their problems."""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import operator
import os
import re
from typing import Any

from flipkit import __version__
from flipkit.plugins import hookspecs, modules

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("flipkit_"))
KINDS = tuple(hook.removeprefix("flipkit_") for hook in HOOKS)  # "maskers", "encoders", ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The origin of a plugin."""

    distribution: str
    version: str
    entry_point: str  # as in pyproject.toml: "block_masker = flipkit_block_masker"

    def __str__(self):
        return f"{self.distribution} {self.version}"


BUILT_IN = Source("flipkit", __version__, "built in")
BY_HAND = "plugins.register"  # in place of an entry point, for a plugin registered by hand


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of a plugin, and its fix."""

    source: Source
    hook: str  # "all" if none was reached
    reason: str
    fix: str
    missing: bool = True  # whether names may be missing because of it
    error: BaseException | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self):
        place = f"entry point: {self.source.entry_point}, hook: {self.hook}"
        return f"Plugin {self.source} ({place}): {self.reason}. Fix: {self.fix}."


@dataclasses.dataclass(frozen=True)
class Component:
    """A line of the listing."""

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: str
    target: str  # "module:attribute"
    summary: str  # the first line of its docstring
    status: str  # "ok"; "shadowed", "ambiguous" or "broken", a colon and more


@dataclasses.dataclass(frozen=True)
class Offer:
    """A name in a hook's result, and its component."""

    kind: str
    name: str
    source: Source
    value: Any

    @property
    def hook(self):
        return f"flipkit_{self.kind}"

    @property
    def full_name(self):
        return f"{self.source.distribution}:{self.name}"

    @property
    def target(self):
        if isinstance(self.value, (str, os.PathLike)):
            return str(self.value)
        made = unwrapped(self.value)
        return f"{made.__module__}:{made.__qualname__}"

    def load(self):
        """The component, imported if need be."""
        if not isinstance(self.value, (str, os.PathLike)):
            return self.value
        module, _, attribute = self.target.partition(":")
        if self.target.endswith(".py"):
            return modules.from_file(self.target).recipe
        found = importlib.import_module(module)
        attribute = attribute or ("recipe" if self.kind == "recipes" else "")
        return operator.attrgetter(attribute)(found) if attribute else found


def key_of(source: Source) -> str:
    """The name in pluggy of a plugin; entry point names alone may be taken twice."""
    return f"{source} ({source.entry_point})"


def normal_name(name: str) -> str:
    """`name` in the form in which distributions are compared (PEP 503): `Flipkit_Foo` is `flipkit-foo`."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def unwrapped(made):
    """The function inside a partial; any other object itself."""
    return made.func if isinstance(made, functools.partial) else made


# The form of a string that refers to a component, where it need not be "module:attribute".
_TARGETS = {"recipes": r"[\w.]+(:[\w.]+)?|.+\.py", "formats": r"[\w.]+(:[\w.]+)?"}


def is_target(kind: str, value: object) -> bool:
    """Whether an entry of a hook's result can be a component of the `kind`."""
    if isinstance(value, (str, os.PathLike)):
        pattern = _TARGETS.get(kind, r"[\w.]+:[\w.]+")
        return re.fullmatch(pattern, str(value)) is not None
    made = unwrapped(value)
    return inspect.isclass(made) or inspect.isroutine(made)


def described(error: BaseException) -> str:
    """The type of `error` and the first line of its message."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
