"""A model's config, its files, and its exported and quantized forms."""

import inspect
import warnings
from typing import Any

import keras

from flipkit import registry
from flipkit.checks import sides
from flipkit.errors import ConfigurationError

MODES = ("int8", "int4", "float8")  # of `quantize`: a file names them


class Saving(keras.Model):
    """A keras.Model whose config is its constructor's arguments, kept in attributes of the same names.

    Attributes:
        image: its image encoder.
        quantized: the Keras config of `quantize`; None before.
    """

    image: Any
    quantized: Any = None

    def export(self, filepath, format="tf_saved_model", *args, input_signature=None, **kwargs):
        """As `keras.Model.export`; builds the model first.

        Args:
            input_signature: a list of one dict of `keras.InputSpec`; its names are the inputs of the
                exported model. None is the input of `predict`, with any number of rows.
        """
        if not self.built:
            self.build()
        if input_signature is None:
            input_signature = [self.signature()]
        return super().export(filepath, format, *args, input_signature=input_signature, **kwargs)

    def signature(self) -> dict[str, keras.InputSpec]:
        """{name: shape and type} of the inputs of an exported model."""
        return {"image": keras.InputSpec("uint8", (None, *sides(self.image.image_size), 3))}

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """As `keras.Model.quantize`, for use, not for training. A file saved after it loads quantized."""
        with warnings.catch_warnings():  # norms and dropout have nothing to quantize
            warnings.filterwarnings("ignore", ".*does not have a `quantize` method", UserWarning)
            super().quantize(mode, config=config, filters=filters, **kwargs)
        self.quantized = config  # Keras has made one of the mode
        self._whole = filters is None

    def _quantized_config(self):
        """The quantization in the model's config: {} without one."""
        if self.quantized is None:
            return {}
        if not self._whole or self.quantized.mode not in MODES:
            raise ConfigurationError(
                "A model quantized in part, or with data, can't be written down. Expected "
                f"quantize(mode) with one of {MODES}. Received: mode={self.quantized.mode!r}"
                f"{'' if self._whole else ' and filters'}"
            )
        return {"quantized": registry.serialize(self.quantized)}

    def get_config(self):
        """The constructor's arguments, each an attribute of the same name."""
        parameters = inspect.signature(type(self)).parameters.values()
        named = (p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        config = registry.serialize({name: getattr(self, name) for name in named})
        for value in config.values():
            if registry.is_serialized(value):
                value.pop("build_config", None)  # the model builds its parts itself,
                value["config"].pop("name", None)  # and names their variables
        config |= {"name": self.name, "dtype": registry.serialize(self.dtype_policy)}
        return {**config, **self._quantized_config()}

    @classmethod
    def from_config(cls, config):
        settings = registry.deserialize(config)
        quantized = settings.pop("quantized", None)
        model = cls(**settings)
        if quantized is not None:
            model.build()
            model.quantize(config=quantized)
        return model

    def load_weights(self, filepath, *args, **kwargs):
        """As `keras.Model.load_weights`; builds the model first."""
        if not self.built:
            self.build()
        return super().load_weights(filepath, *args, **kwargs)

    def compile_from_config(self, config):
        config = registry.deserialize(config)
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def get_build_config(self):
        return {"input_shape": None} if self.built else None

    def build_from_config(self, config):
        if not self.built:
            self.build()
