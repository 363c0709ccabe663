"""Weights of one model as the first values of another, which exists already."""

import pathlib
import tempfile

from flipkit import registry
from flipkit.models.flip import FLIP
from flipkit.models.trainable import Trainable
from flipkit.weights import tensors

# Arguments that change no output of a trained model, or only its name.
_FREE = {
    "build_config",
    "drop_path",
    "dropout",
    "dtype",
    "frozen",
    "image_size",
    "impl",
    "init_logit_bias",
    "mask_ratio",
    "masker",
    "mlp_dim",  # None stands for a number; another shape is refused anyway
    "name",
    "remat",
    "scan",
    "seed",
    "temperature",
    "text_mask_ratio",
    "text_masker",
    "trainable",
}


def take_weights(model: Trainable, source: Trainable, name):
    """Puts the weights of `source` into `model`, both built; learned positions are resampled to
    its grid, and the patch embedding to its patch size.

    Args:
        model: of the class of `source`, or another, which takes the image tower alone.
        name: the name of `source` in an error.

    Raises:
        ConfigurationError: lists the weights that are missing, unexpected or reshaped.
    """
    whole = isinstance(model, type(source))
    values = {
        path: variable.numpy()
        for path, variable in tensors.weights(source).items()
        if whole or path.startswith("image/")
    }
    grids = [getattr(part.image, "grid", None) for part in (source, model)]
    if "image/position" in values and None not in grids:
        values["image/position"] = tensors.resample_positions(values["image/position"], *grids)
    embedding = "image/patch_embed/kernel"
    if embedding in values and hasattr(model.image, "patch_size"):
        sizes = source.image.patch_size, model.image.patch_size
        values[embedding] = tensors.resample_patches(values[embedding], *sizes)
    tensors.assign(model if whole else model.image, values, name)


def take_tokenizer(model: FLIP, source: Trainable):
    """Copies the vocabulary of `source`'s tokenizer to an untrained tokenizer of the same class."""
    if model.tokenizer is None or model.tokenizer.trained or not _same_kind(model, source):
        return
    with tempfile.TemporaryDirectory() as folder:
        source.tokenizer.save_assets(pathlib.Path(folder))
        model.tokenizer.load_assets(pathlib.Path(folder))


def _same_kind(model, source):
    own = getattr(source, "tokenizer", None)
    return own is not None and type(model.tokenizer) is type(own) and own.trained


def differing_settings(model: Trainable, source: Trainable) -> list[str]:
    """Settings that change what weights mean and that differ: a line each.

    Weights of the same shapes fit a model with another activation or other pooling, so that callers
    report these settings.
    """
    there, here = (registry.serialize(part.get_config()) for part in (source, model))
    shared = there.keys() & here.keys()
    there, here = ({name: config[name] for name in shared} for config in (there, here))
    return list(_compare(there, here))


def _compare(there, here, path: str = ""):
    if registry.is_serialized(there) and registry.is_serialized(here):
        if there["class_name"] != here["class_name"]:
            yield f"{path}: {there['class_name']} there, {here['class_name']} here"
            return
        there, here = there["config"], here["config"]
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted((there.keys() | here.keys()) - _FREE):
            yield from _compare(there.get(key), here.get(key), f"{path}.{key}".lstrip("."))
    elif there != here:
        yield f"{path}: {there!r} there, {here!r} here"
