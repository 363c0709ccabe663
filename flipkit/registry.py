"""Names to components, as `keras.activations.get` does it; plain objects with a config."""

import functools
import inspect
from typing import Any

import keras

from flipkit import plugins
from flipkit.errors import ConfigurationError
from flipkit.keras_inside import without_tensorflow as without_tensorflow


def register(cls):
    """Class decorator: Keras saves and loads `cls` under the name `flipkit>ClassName`."""
    return keras.saving.register_keras_serializable(package="flipkit")(cls)


class Configurable:
    """A plain object whose config is its constructor's arguments, kept in attributes of the same names."""

    def get_config(self):
        """The constructor's arguments: `type(self).from_config(self.get_config())` is an equal object."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: serialize(getattr(self, name)) for name in named}

    @classmethod
    def from_config(cls, config):
        """The object that `config` describes."""
        return cls(**{name: deserialize(value) for name, value in config.items()})

    def __repr__(self):
        config = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({config})"


def serialize(value) -> Any:
    """`value` as JSON holds it; an object with a config becomes Keras's serialised form."""
    if isinstance(value, (list, tuple)):
        return [serialize(item) for item in value]
    if isinstance(value, dict):
        return {key: serialize(item) for key, item in value.items()}
    if not hasattr(value, "get_config"):
        return value
    with without_tensorflow():
        return keras.saving.serialize_keras_object(value)


def deserialize(value) -> Any:
    """The inverse of `serialize`; lists stay lists."""
    if is_serialized(value):
        return keras.saving.deserialize_keras_object(value)
    if isinstance(value, list):
        return [deserialize(item) for item in value]
    if isinstance(value, dict):
        return {key: deserialize(item) for key, item in value.items()}
    return value


def is_serialized(value) -> bool:
    """Whether `value` is Keras's serialised form of an object."""
    return isinstance(value, dict) and {"class_name", "config"} <= value.keys()


def get(kind: str, identifier, base: type | tuple[type, ...] = object) -> Any:
    """The component that `identifier` describes.

    Args:
        kind: plural name of the kind, as its module and hook have it: `"maskers"`.
        identifier: a registered name (`"random"`, or `"distribution:name"` where two plugins offer
            one name), a component, its class, its serialised config, or None.
        base: the class of components of this kind.

    Raises:
        UnknownName: nothing has that name; the message names the nearest known one.
        ConfigurationError: the object is no component of this kind.
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        identifier = plugins.make(kind, identifier)
    elif is_serialized(identifier):
        identifier = deserialize(identifier)
    if inspect.isroutine(identifier) or isinstance(identifier, (type, functools.partial)):
        identifier = identifier()  # no other callable: a layer of another kind is one too
    if not isinstance(identifier, base):
        raise ConfigurationError(
            f"Expected one of the {kind}: a name, an object or its config. Received: {identifier!r}"
        )
    return identifier
