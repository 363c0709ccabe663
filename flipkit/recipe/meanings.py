"""Reads the meanings of settings, those of a recipe and of its run, from docstrings."""

import dataclasses
import inspect
import re
import sys
from typing import Any

import keras

from flipkit import recipe
from flipkit.settings import REQUIRED

ENOUGH = 90  # characters of a meaning, after which no sentence is added

OF_LAYERS = {  # arguments of every Keras layer that no docstring describes
    "activity_regularizer": "Keras regularizer of the layer's outputs, added to the loss",
    "autocast": "whether inputs are cast to the dtype that the layer computes in",
}

# Sentences of Keras's docstrings that give a type or a default, which the value shows.
_ON_TYPES = re.compile(
    r"callable that takes no arguments|^Defaults to|^(?:A )?(?:float|int|integer|boolean|bool|string)"
    r"(?: or None| value)?(?:, defaults to \w+)?\.$",
    re.IGNORECASE,
)
_PLAIN = (
    str,
    int,
    float,
    list,
    tuple,
    dict,
    type(None),
)  # any other type in a config is a component


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of name=value.

    Attributes:
        path: its name.
        value: its current value, as text.
        meaning: the text of a docstring; empty if no docstring describes it.
    """

    path: str
    value: str
    meaning: str


def settings(function, run) -> dict[str, list[Setting]]:
    """Returns all settings by their owner: {title: settings}, the recipe's arguments first.

    Args:
        function: the recipe.
        run: the run that it returns.
    """
    groups: dict[str, list[Setting]] = {"": [], "run": []}
    titles = {"": "Arguments of the recipe", "run": "The run"}
    for path, value in run.paths().items():
        component = _at(run, path)
        if value == type(component).__name__ and not isinstance(component, _PLAIN):
            titles[path] = f"{path}={value}"
            if line := _sentences(_first_paragraph(component), ENOUGH):
                titles[path] += f": {line}"
            groups[path] = []
            continue
        owner, name = _owner(run, path)
        group = next((p for p in _parents(path) if p in titles), "run")
        meaning = argument(type(owner), name) or OF_LAYERS.get(name, "")
        if isinstance(owner, keras.optimizers.Optimizer):
            meaning = meaning or argument(keras.optimizers.Adam, name)  # describes the shared ones
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        groups[group].append(Setting(path, shown, _sentences(meaning)))
    # An argument without a description in the recipe gets that of the same name in the run.
    inside: dict[str, str] = {}
    for found in groups.values():
        for setting in found:
            if setting.meaning:
                inside.setdefault(setting.path.rpartition(".")[2], setting.meaning)
    for name, default in recipe.dials(function).items():
        value = "(needed)" if default is REQUIRED else str(default)
        meaning = _sentences(argument(function, name)) or inside.get(name, "")
        groups[""].append(Setting(name, value, meaning))
    return {titles[group]: found for group, found in groups.items()}


def argument(owner: Any, name: str) -> str:
    """Returns the description of an argument in a docstring, or "".

    Reads the docstrings of `owner`, of its base classes and of the functions that it calls.
    """
    for documented in _line(owner):
        if name in (found := arguments(documented.__doc__ or "")):
            return _followed(found[name], owner, name)
    return ""


def _line(owner):
    """Yields the classes and functions that may document an argument of `owner`, nearest first."""
    if inspect.isclass(owner):
        for cls in inspect.getmro(owner):
            yield cls
            if inspect.isfunction(init := vars(cls).get("__init__")):
                yield init
    else:
        yield owner
        for called in (owner.__globals__.get(name) for name in owner.__code__.co_names):
            if inspect.isfunction(called) and called is not owner:
                yield from _line(called)


def _followed(text, owner, name):
    """Returns `text`, or the description that it refers to: "as in `ViT`"."""
    reference = re.match(r"as in `?(?:\w+\.)*(\w+)", text)
    if reference is None:
        return text
    other = getattr(sys.modules.get(owner.__module__), reference[1], None)
    if other is None and reference[1] in recipe.names():
        other = recipe.load(reference[1])
    usable = (inspect.isclass(other) or inspect.isfunction(other)) and other is not owner
    return (argument(other, name) if usable else "") or text


def arguments(docstring: str) -> dict[str, str]:
    """Returns the `Args:` of a docstring: {argument: description}."""
    # Joins names that continue on the next line.
    lines = re.sub(r"(?m)^( +[\w*, ]+,)\n +", r"\1 ", inspect.cleandoc(docstring)).splitlines()
    starts = [i for i, line in enumerate(lines) if line.strip() in ("Args:", "Arguments:")]
    if not starts:
        return {}
    found: dict[str, str] = {}
    indent, names = None, []
    for line in lines[starts[0] + 1 :]:
        depth = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if depth == 0:
            break
        indent = indent or depth
        head = re.match(r"\s*([\w*]+(?:, *[\w*]+)*)(?: *\([^)]*\))?: *(.*)", line)
        if depth == indent and head:
            names = [name.strip("* ") for name in head[1].split(",")]
            found |= dict.fromkeys(names, head[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return {name: _part(text, name, found) for name, text in found.items()}


def _part(text, name, found):
    """Returns the description of one of several arguments: `dim, depth: width, blocks`."""
    names = [other for other, same in found.items() if same is text]
    parts = text.removesuffix(".").split(", ")
    alone = len(names) == len(parts) > 1 and not re.search(r"[][.;:()]", text.removesuffix("."))
    return parts[names.index(name)] if alone else text


def _sentences(text, enough=ENOUGH):
    """Returns the first sentences of `text` up to about `enough` characters, without the last full stop."""
    kept = ""
    text = re.sub(r"{{\w+}}", "", text.replace("`", ""))  # Keras's docstring of Muon has one
    for sentence in re.split(r"(?<=\w\w\.)\s+(?=[A-Z])", " ".join(text.split())):
        if _ON_TYPES.search(sentence):
            continue
        if kept and len(kept) + len(sentence) > enough:
            break
        kept = f"{kept} {sentence}".strip()
    return kept.removesuffix(".")


def _first_paragraph(component):
    text = inspect.cleandoc(type(component).__doc__ or "")
    return text.partition("\n\n")[0]


def _parents(path):
    """`a.b.c` -> `a.b`, `a`."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _owner(run, path):
    """Returns the component that has the argument at `path`, and the argument's name."""
    for parent in (*_parents(path), ""):
        owner = _at(run, parent) if parent else run
        if not isinstance(owner, _PLAIN):
            return owner, path[len(parent) :].lstrip(".").partition(".")[0]
    raise AssertionError("a run owns what nothing in it does")


def _at(run, path):
    """Returns the object at a dotted path of a run, or None."""
    found: Any = run
    for part in path.split("."):
        if isinstance(found, (list, tuple)):
            found = found[int(part)] if int(part) < len(found) else None
        elif isinstance(found, dict):
            found = found.get(part)
        else:
            found = getattr(found, part, None)
    return found
