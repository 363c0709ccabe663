"""Presets of CLIP and SigLIP by KerasHub (once KerasNLP), read from a local folder without that library."""

import json
import pathlib

import h5py
import numpy as np

from flipkit.encoders import TextTransformer, ViT, shape_only
from flipkit.errors import ConfigurationError
from flipkit.models.flip import FLIP
from flipkit.preprocessing import Preprocessing
from flipkit.tokenizers import ClipBPE, SentencePiece
from flipkit.weights.flax_names import entry, head_shape
from flipkit.weights.foreign import MOST_LAYERS, Config, read_json
from flipkit.weights.tensors import Entry, load, weights

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.weights.h5", "model.weights.json"
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_approximate": "gelu_tanh"}
_VARIABLES = {"kernel": 0, "gamma": 0, "bias": 1, "beta": 1}  # places in a layer

# Where in the file the layers are, by their paths in flipkit: Keras names classes and numbers them.
_CLIP = {
    "image_projection": "dense",
    "text_projection": "dense_1",
    "image/patch_embed": "clip_vision_encoder/layers/clip_vision_embedding/patch_embedding",
    "image/pre_norm": "clip_vision_encoder/layers/layer_normalization",
    "image/norm": "clip_vision_encoder/layers/layer_normalization_1",
    "image/block": "clip_vision_encoder/layers/clip_encoder_layer",
    "text/norm": "clip_text_encoder/layers/layer_normalization",
    "text/block": "clip_text_encoder/layers/clip_encoder_layer",
    "attention_norm": "layer_norm_1",
    "mlp_norm": "layer_norm_2",
    "attention": "attention",
    "mlp/up": "dense_1",
    "mlp/down": "dense_2",
}
_CLIP_ALONE = {  # weights that come first in their layers
    "logit_scale": "clip_head",
    "image/class_token": "clip_vision_encoder/layers/clip_vision_embedding",
    "image/position": "clip_vision_encoder/layers/clip_vision_embedding/position_embedding",
    "text/token_embedding": (
        "clip_text_encoder/layers/token_and_position_embedding/token_embedding"
    ),
    "text/position": "clip_text_encoder/layers/token_and_position_embedding/position_embedding",
}
_SIGLIP = {
    "text_projection": "sig_lip_text_encoder/layers/dense",
    "image/patch_embed": "sig_lip_vision_encoder/layers/sig_lip_vision_embedding/patch_embedding",
    "image/norm": "sig_lip_vision_encoder/layers/layer_normalization",
    "image/pool": "sig_lip_vision_encoder/layers/sig_lip_multi_head_attention_pooling",
    "image/block": "sig_lip_vision_encoder/layers/sig_lip_encoder_layer",
    "text/norm": "sig_lip_text_encoder/layers/layer_normalization",
    "text/block": "sig_lip_text_encoder/layers/sig_lip_encoder_layer",
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "norm": "layer_norm",  # in the attention pool
    "attention": "self_attn",
    "mlp/up": "mlp/fc1",
    "mlp/down": "mlp/fc2",
}
_SIGLIP_ALONE = {
    "logit_scale": "sig_lip_head",
    "image/position": "sig_lip_vision_encoder/layers/sig_lip_vision_embedding/position_embedding",
    "image/pool/probe": "sig_lip_vision_encoder/layers/sig_lip_multi_head_attention_pooling",
    "text/token_embedding": "sig_lip_text_encoder/layers/sig_lip_text_embedding/token_embedding",
    "text/position": "sig_lip_text_encoder/layers/sig_lip_text_embedding/position_embedding",
}
# Which row of a table each position takes is a variable too: 0, 1, 2, ... in KerasHub's own presets, but
# zeros in a CLIP that it made without weights.
_ROWS = {
    "layers/clip_vision_encoder/layers/clip_vision_embedding/vars/1": _CLIP_ALONE["image/position"],
    "layers/sig_lip_vision_encoder/layers/sig_lip_vision_embedding/vars/0": _SIGLIP_ALONE[
        "image/position"
    ],
    "layers/sig_lip_text_encoder/layers/sig_lip_text_embedding/vars/0": _SIGLIP_ALONE[
        "text/position"
    ],
}


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a preset of KerasHub's CLIP or SigLIP."""
    try:
        stored = json.loads((path / _CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and stored.get("class_name") in _FAMILIES


def read(path: pathlib.Path) -> FLIP:
    """The model in a preset, its weights in one file or several; with the tokenizer if its files are there.

    It cuts and normalises pixels as the family does, and ignores image_converter.json. The last norm of
    CLIP's text has an epsilon of 1e-5, as in CLIP; in KerasHub 0.32 it is 1e-6, which moves no
    embedding by more than 1e-6.

    Raises:
        ConfigurationError: the config has settings that flipkit can't express, a file is damaged, or the
            arrays are not the config's; the message lists them.
    """
    path = pathlib.Path(path)
    stored = read_json(path / _CONFIG)
    if stored.get("class_name") not in _FAMILIES:
        raise ConfigurationError(
            f"Expected a preset of {' or '.join(_FAMILIES)}. Received: {path}, which is of "
            f"{stored.get('class_name')!r}."
        )
    describe, layers, alone = _FAMILIES[stored["class_name"]]
    model = describe(Config(stored.get("config"), str(path / _CONFIG)), path)
    described = shape_only(model)  # a config must not make flipkit allocate
    entries = [_entry(described, place, layers, alone) for place in weights(described)]
    load(model, entries, _arrays(path), str(path))
    return model


# Names ------------------------------------------------------------------------------------------


def _entry(model, path, layers, alone) -> Entry:
    """The array that holds one of flipkit's weights."""
    if path == "logit_bias":
        return entry(f"layers/{alone['logit_scale']}/vars/1", path)
    tower = model.image if path.startswith("image/") else model.text
    if path in alone:
        return entry(
            f"layers/{alone[path]}/vars/0",
            path,
            (tower.dim,) if path == "image/class_token" else None,
        )
    layer, _, name = path.rpartition("/")
    shape = head_shape(path, tower.heads, tower.dim)
    if path == "image/patch_embed/kernel":
        shape = (tower.patch_size, tower.patch_size, 3, tower.dim)
    return entry(f"layers/{_layer(layer, layers)}/vars/{_VARIABLES[name]}", path, shape)


def _layer(path, layers):
    """`image/block_01/mlp/up` -> `clip_vision_encoder/layers/clip_encoder_layer_1/dense_1`."""
    if path in layers:
        return layers[path]
    tower, part, inside = path.split("/", 2)
    if part == "pool":
        outer, attention = layers["image/pool"], "attention"
    else:
        number = int(part.removeprefix("block_"))
        outer = layers[f"{tower}/block"] + (f"_{number}" if number else "")
        attention = layers["attention"]
    if inside.startswith("attention/"):
        place = inside.removeprefix("attention/").replace("out", "output")
        return f"{outer}/{attention}/{place}_dense"
    return f"{outer}/{layers[inside]}"


# Files ------------------------------------------------------------------------------------------


def _arrays(path) -> dict[str, np.ndarray]:
    """Every weight in the preset's files."""
    files = [_WEIGHTS]
    if not (path / _WEIGHTS).is_file() and (path / _INDEX).is_file():
        places = read_json(path / _INDEX).get("weight_map", {})
        named = [place if isinstance(place, list) else [place] for place in places.values()]
        # Names alone: an index must not lead out of its folder.
        files = sorted({pathlib.PurePath(str(name)).name for names in named for name in names})
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item[()], "int32" if name in _ROWS else "float32")

    for file in files:
        try:
            with h5py.File(path / file, "r") as opened:
                opened.visititems(keep)
        except (OSError, RuntimeError, TypeError, ValueError) as problem:
            raise ConfigurationError(
                f"Expected an HDF5 file. Received: {path / file}, which is missing, cut short or "
                f"damaged: {problem}"
            ) from problem
    for rows, table in _ROWS.items():
        table = f"layers/{table}/vars/0"
        rows = found.pop(rows, None)
        if rows is not None and table in found and found[table].ndim == 2 and len(found[table]):
            found[table] = np.take(found[table], rows.ravel(), axis=0, mode="clip")
    return found


# Models -----------------------------------------------------------------------------------------


def _clip(config, path) -> FLIP:
    vision, text = _towers(config)
    dim = config.whole("projection_dim")
    config.close()
    for tower in (vision, text):
        tower.require("intermediate_output_index", None)
    image = _image(
        vision,
        class_token=True,
        class_position=True,
        patch_bias=False,
        pre_norm=True,
        pool="class",
        final_norm="after_pool",
        norm_epsilon=1e-5,
    )
    text = _text(text, causal=True, pool="eos", eos=None, norm_epsilon=1e-5)
    merges = path / "assets" / "tokenizer" / "merges.txt"
    return FLIP(
        image,
        text,
        mask_ratio=0.0,
        dim=dim,
        max_logit_scale=None,
        preprocessing=Preprocessing("clip"),
        tokenizer=ClipBPE(merges if merges.is_file() else None),
    )


def _siglip(config, path) -> FLIP:
    vision, text = _towers(config)
    config.close()
    dim = text.whole("projection_dim")
    for tower in (vision, text):
        tower.require("layer_norm_epsilon", 1e-6)
    image = _image(vision, class_token=False, pool="map", norm_epsilon=1e-6)
    text = _text(text, causal=False, pool="last", padding=1, norm_epsilon=1e-6)
    pieces = path / "assets" / "tokenizer" / "vocabulary.spm"
    return FLIP(
        image,
        text,
        mask_ratio=0.0,
        dim=dim,
        image_head=None,
        text_head="affine",
        temperature=0.1,
        max_logit_scale=None,
        init_logit_bias=-10.0,
        preprocessing=Preprocessing("half", resize_mode="squash"),
        tokenizer=SentencePiece(
            pieces if pieces.is_file() else None, clean="canonicalize", add_eos=True, pad=1
        ),
    )


_FAMILIES = {
    "CLIPBackbone": (_clip, _CLIP, _CLIP_ALONE),
    "SigLIPBackbone": (_siglip, _SIGLIP, _SIGLIP_ALONE),
}


def _towers(config) -> tuple[Config, Config]:
    """The towers' own configs."""
    config.ignore("name", "trainable", "dtype")
    towers = []
    for name in ("vision_encoder", "text_encoder"):
        tower = config.section(name, {}).section("config", {})
        tower.ignore("name", "trainable", "dtype")
        towers.append(tower)
    return towers[0], towers[1]


def _stack(config):
    return {
        "dim": config.whole("hidden_dim"),
        "depth": config.whole("num_layers", most=MOST_LAYERS),
        "heads": config.whole("num_heads"),
        "mlp_dim": config.whole("intermediate_dim"),
        "activation": config.choice("intermediate_activation", "gelu_approximate", _ACTIVATIONS),
    }


def _image(config, **options) -> ViT:
    shape, patch_size, stack = (
        config.take("image_shape"),
        config.whole("patch_size"),
        _stack(config),
    )
    config.close()
    if not isinstance(shape, list) or len(shape) != 3 or shape[2] != 3 or shape[0] != shape[1]:
        raise ConfigurationError(
            f"{config.source}: expected image_shape=[size, size, 3]. Received: {shape}"
        )
    return ViT(shape[0], patch_size, **stack, positions="learned", **options)


def _text(config, **options) -> TextTransformer:
    stack = _stack(config)
    config.require("embedding_dim", stack["dim"])
    vocab, length = config.whole("vocabulary_size"), config.whole("max_sequence_length")
    config.close()
    return TextTransformer(vocab, length, **stack, **options)
