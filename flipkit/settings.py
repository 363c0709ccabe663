"""`name=value` on a command line: text to values, and values to the type of the old ones."""

import ast
import inspect
import math
from collections.abc import Mapping

from flipkit.checks import is_size, takes_size
from flipkit.errors import ConfigurationError, UnknownName, nearest

REQUIRED = inspect.Parameter.empty  # in the place of a default


def as_like(value, likes, name, annotation=None):
    """`value` in the type of one of `likes`: the value that it replaces, and its owner's default.

    None fits always, and any value fits where the type is unknown. A parameter whose annotation is a
    `flipkit.checks.Size` takes one side or a pair, whatever it replaces.

    Raises:
        ConfigurationError: it has the type of none of them.
    """
    likes = [like for like in likes if like is not None and like is not REQUIRED]
    if value is None:
        return value
    if takes_size(annotation):
        if is_size(value):
            return value
        such = likes[0] if likes else 224
        raise ConfigurationError(
            f"Expected pixels, one side or (height, width), such as {such!r}. Received: {name}={value!r}"
        )
    if not likes:
        return value
    for like in likes:
        if _fits(value, like):
            count = type(like) is int and isinstance(value, float) and value.is_integer()
            return int(value) if count else value  # 1e6 for a count
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "a dict"}
    kind = kinds.get(type(likes[0]), "a list")
    raise ConfigurationError(f"Expected {kind}, such as {likes[0]!r}. Received: {name}={value!r}")


def _fits(value, like):
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(like, (int, float)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if isinstance(like, (list, tuple)):
        return isinstance(value, (list, tuple, str))
    if isinstance(like, dict) and "class_name" not in like:
        return isinstance(value, dict)
    return True  # a component may be given by name, and its owner checks the name


def parse(text: str):
    """A Python literal (`0.5`, `(0.3, 1)`), `true`, `false` or `none`; else the string itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def split_settings(arguments) -> dict[str, str]:
    """`["a=1", "b.c=x"]` -> `{"a": "1", "b.c": "x"}`."""
    settings = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"Expected name=value. Received: {argument!r}")
        settings[name] = value
    return settings


def read(texts: Mapping[str, str], known: Mapping[str, object], likes: dict | None = None) -> dict:
    """{name: value} of the texts, each in the type of its default.

    Args:
        texts: {name: text}, as `split_settings` returns them.
        known: {name: default} of all that can be set; REQUIRED or None stands for any type.
        likes: {name: a value of the type wanted}, where a default has none.

    Raises:
        UnknownName: a name is not known; the message names the nearest one.
        ConfigurationError: a value has another type than its default.
    """
    for name in texts:
        if name not in known:
            raise UnknownName(f"Unknown setting {name!r}. {nearest(name, known)}")
    typed = {**known, **(likes or {})}
    return {name: as_like(parse(text), [typed[name]], name) for name, text in texts.items()}
