"""Paths to a component's arguments: what `name=value` can set, and copies with other values."""

import contextlib
import inspect
from collections.abc import Mapping

import keras

from flipkit import registry
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName, nearest_path
from flipkit.settings import as_like


def paths(component) -> dict[str, object]:
    """Everything that can be set in a component: {dotted path: value}, components in it as their class."""
    return dict(_flatten(component.get_config()))


def changed(component, values: Mapping[str, object]):
    """A copy of a component with the arguments at dotted paths changed: {path: value}, in this order.

    It rebuilds only the arguments at the paths' heads from their configs and keeps the others. What is
    below one head changes together: a width may come before the heads that divide it.

    Args:
        component: an object that keeps its constructor's arguments in attributes, as `Configurable`.

    Raises:
        UnknownName: no such path; the message names the nearest one.
        ConfigurationError: a value has the wrong type, or its owner refuses it.
    """
    arguments = {name: getattr(component, name) for name in component.get_config()}
    trees = {}  # head -> its config, as far as it is changed
    for path, value in values.items():
        head, *rest = path.split(".")
        if head not in arguments:
            known = {**arguments, **paths(component)}
            raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, arguments)}")
        with _refusing({path: value}):
            if not rest:
                arguments[head] = as_like(value, [arguments[head]], path)
                made = type(component)(**arguments)  # makes components of names
                arguments = {name: getattr(made, name) for name in arguments}
                trees.pop(head, None)
                continue
            tree = trees.get(head) or registry.serialize(arguments[head])
            try:
                _set(tree, rest, value, path)
            except UnknownName:
                # A component that was just set by name has arguments only once it is made.
                tree = registry.serialize(registry.deserialize(tree))
                _set(tree, rest, value, path)
            trees[head] = tree
    for head, tree in trees.items():
        with _refusing({p: v for p, v in values.items() if p.split(".")[0] == head}):
            arguments[head] = registry.deserialize(tree)
    with _refusing(values):
        return type(component)(**arguments)


@contextlib.contextmanager
def _refusing(values):
    """Turns an error raised inside into one that names the values that can't be set, and the cause."""
    try:
        yield
    except FlipkitError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        # Keras wraps what a constructor raises, flipkit's own errors too, into pages of config.
        reason = str(problem).rpartition("Exception encountered: ")[2].strip()
        shown = ", ".join(f"{path}={value!r}" for path, value in values.items())
        raise ConfigurationError(f"Can't set {shown}. {reason}") from problem


def _children(node):
    """The settable parts of a config node: its dict or list, or None for a leaf."""
    if registry.is_serialized(node):
        return node["config"]
    return node if isinstance(node, (dict, list)) else None


def _key(children, part, path, known):
    """`part` as a key of `children`; raises with the nearest of the paths `known` if it is none."""
    if isinstance(children, list):
        if part.lstrip("-").isdigit() and -len(children) <= int(part) < len(children):
            return int(part)
        places = map(str, range(len(children)))
        raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, places)}")
    if children is None or part not in children:
        raise UnknownName(f"Unknown: {path!r}. {nearest_path(path, known, children or ())}")
    return part


def _set(tree, parts, value, path):
    known = [path for path, _ in _flatten(tree, f"{path.partition('.')[0]}.")]
    for part in parts[:-1]:
        children = _children(tree)
        tree = children[_key(children, part, path, known)]
    children = _children(tree)
    key = _key(children, parts[-1], path, known)
    default, annotation = _parameter(tree, key)
    children[key] = as_like(value, [children[key], default], path, annotation)


def _parameter(node, key):
    """The default, or None, and the annotation of `key` in the component that `node` describes."""
    if not registry.is_serialized(node):
        return None, None
    owner = keras.saving.get_registered_object(node["registered_name"]) or object
    parameter = inspect.signature(owner).parameters.get(key)
    if parameter is None:
        return None, None
    return None if parameter.default is parameter.empty else parameter.default, parameter.annotation


def _flatten(node, prefix=""):
    children = _children(node)
    if registry.is_serialized(node) and prefix:
        yield prefix.rstrip("."), node["class_name"]
    if not children:
        if prefix and not registry.is_serialized(node):
            yield prefix.rstrip("."), node
        return
    items = children.items() if isinstance(children, dict) else enumerate(children)
    for key, child in items:
        yield from _flatten(child, f"{prefix}{key}.")
