"""flipkit: fast language-image pre-training (FLIP) on Keras 3 and JAX, with plugins."""

import importlib
import json
import os
import pathlib
import re
import sys

__version__ = "0.1.0"

# Public names and the modules they live in. A name is loaded when it is first used, so that
# `import flipkit` costs nothing and a wrong recipe raises its error before Keras is imported.
# Type checkers and editors read the same names in __init__.pyi.
_HOMES = {
    "Accuracy": "evaluation",
    "AdamW": "optimizers",
    "Attention": "layers",
    "Augment": "preprocessing",
    "BadSample": "errors",
    "Bytes": "tokenizers",
    "CaptionChoice": "evaluation",
    "CaptionedShapes": "datasets",
    "Classifier": "models",
    "ClipBPE": "tokenizers",
    "ConfigurationError": "errors",
    "Constant": "schedules",
    "ContrastiveLoss": "losses",
    "DataError": "errors",
    "Dataset": "datasets",
    "Distillation": "training.distillation",
    "Distribution": "distribution",
    "Dropout": "layers",
    "FLIP": "models",
    "Feed": "feed",
    "FlipkitError": "errors",
    "ImageTextShards": "datasets",
    "LARS": "optimizers",
    "Loss": "losses",
    "MAEDecoder": "models",
    "Masker": "maskers",
    "NamedCharacters": "datasets",
    "Neighbours": "evaluation",
    "Phase": "training",
    "PluginError": "errors",
    "Preprocessing": "preprocessing",
    "PrioritisedMasker": "maskers",
    "RandAugment": "preprocessing",
    "RandomMasker": "maskers",
    "Retrieval": "evaluation",
    "Run": "training",
    "Schedule": "schedules",
    "Seed": "random",
    "SentencePiece": "tokenizers",
    "TextTransformer": "encoders",
    "Tokenizer": "tokenizers",
    "TransformerBlock": "layers",
    "UnknownName": "errors",
    "ViT": "encoders",
    "WarmupCosine": "schedules",
    "WordPiece": "tokenizers",
    "ZeroShot": "evaluation",
    "hookimpl": "plugins.hookspecs",
    "load_model": "weights",
    "load_pretrained": "weights",
    "mask_phases": "training",
    "save_as": "weights",
    "scaled": "recipe",
}
_MODULES = {
    name: name
    for name in (
        "callbacks",
        "checks",
        "configs",
        "datasets",
        "encoders",
        "errors",
        "evaluation",
        "files",
        "keras_inside",
        "layers",
        "losses",
        "maskers",
        "models",
        "optimizers",
        "paths",
        "plugins",
        "preprocessing",
        "random",
        "recipe",
        "registry",
        "schedules",
        "settings",
        "study",
        "testing",
        "tokenizers",
        "training",
        "weights",
    )
} | {"prompts": "evaluation.prompts"}

__all__ = sorted([*_HOMES, *_MODULES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def _choose_backend():
    """Set KERAS_BACKEND=jax unless the environment, an earlier import or keras.json chose another.

    Keras itself writes `"tensorflow"` into a new keras.json, so that value is nobody's choice.
    """
    if "KERAS_BACKEND" in os.environ or "keras" in sys.modules:
        return
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    try:
        chosen = json.loads((home / "keras.json").read_text()).get("backend", "tensorflow")
    except (OSError, ValueError):
        chosen = "tensorflow"
    if chosen == "tensorflow":
        os.environ["KERAS_BACKEND"] = "jax"


def _give_simulated_devices_threads():
    """Keep simulated devices from waiting for each other for ever.

    Each of them holds a thread of XLA's pool for every collective it waits in; the pool has one per
    core, so that two collectives at once could take all and never finish. XLA (as of jaxlib 0.10)
    takes the pool's size from NPROC.
    """
    count = re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if count:
        os.environ.setdefault("NPROC", str(32 * int(count[1])))


_choose_backend()
_give_simulated_devices_threads()


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"flipkit.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"flipkit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flipkit' has no attribute {name!r}")


def __dir__():
    return __all__
