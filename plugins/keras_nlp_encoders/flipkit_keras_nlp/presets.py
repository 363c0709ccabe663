"""Presets: folders, or names of keras-nlp's, with a model's config, weights and vocabulary."""

import concurrent.futures
import json
import os
import pathlib
import sys

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
import numpy as np


def library():
    """keras-nlp, imported when it is first needed, without giving TensorFlow the accelerator."""
    began = "tensorflow" in sys.modules
    try:
        import keras_nlp
    except ImportError as error:
        raise flipkit.ConfigurationError(
            f"A keras-nlp preset needs keras-nlp ({error}): pip install flipkit-keras-nlp"
        ) from error
    tensorflow = sys.modules.get("tensorflow")
    if not began and tensorflow is not None and keras.backend.backend() != "tensorflow":
        tensorflow.config.set_visible_devices([], "GPU")  # it would take all of its memory
    return keras_nlp


def backbone_config(preset, part=None) -> dict:
    """The serialised form of a preset's backbone, without weights.

    Args:
        preset: a folder, or a name of keras-nlp's.
        part: "vision_encoder" or "text_encoder": that part, where the backbone has it.
    """
    path = pathlib.Path(os.fspath(preset), "config.json")
    if path.parent.is_dir():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise flipkit.ConfigurationError(
                f"Expected a preset's folder, with a config.json. Received: {preset} ({error})"
            ) from error
    else:
        config = apart(lambda: flipkit.registry.serialize(_load(preset, load_weights=False)))
    return config["config"].get(part, config)


def weights(preset, part=None) -> list[np.ndarray]:
    """The weights of a preset's backbone, or of that part, in the order of its `weights`."""

    def read():
        backbone = _load(preset)
        backbone = getattr(backbone, part) if part and hasattr(backbone, part) else backbone
        return [keras.ops.convert_to_numpy(weight) for weight in backbone.weights]

    return apart(read)


def _load(preset, load_weights=True):
    try:
        return library().models.Backbone.from_preset(os.fspath(preset), load_weights=load_weights)
    except (OSError, ValueError) as error:
        if isinstance(error, flipkit.ConfigurationError):
            raise
        raise flipkit.ConfigurationError(f"Can't read the preset {preset}: {error}") from error


def apart(function):
    """The result of `function`, run where no model is being built.

    Keras keeps by thread the model that it is building: a model made while another one waits for its
    variables' first values would make them create theirs twice.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
