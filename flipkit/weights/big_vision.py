"""SigLIP as big_vision stores it (google-research/big_vision): flax parameters by path in an .npz file."""

import math
import pathlib
import re
import zipfile
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import ConfigurationError
from flipkit.models.flip import FLIP
from flipkit.preprocessing import Preprocessing
from flipkit.tokenizers import SentencePiece
from flipkit.weights.flax_names import entry, flax_name, head_shape
from flipkit.weights.tensors import Entry, dump, load, refuse, refuse_pickle, weights

_OWN = {  # weights outside the stack of blocks
    "class_token": "cls",
    "patch_embed/kernel": "embedding/kernel",
    "patch_embed/bias": "embedding/bias",
    "position": "pos_embedding",
    "pool/probe": "MAPHead_0/probe",
    "pool/norm/gamma": "MAPHead_0/LayerNorm_0/scale",
    "pool/norm/beta": "MAPHead_0/LayerNorm_0/bias",
    "token_embedding": "Embed_0/embedding",
}
_TOWERS = {"image": ("img", "Transformer"), "text": ("txt", "Encoder_0")}
_OTHERS = {"logit_scale": "t", "logit_bias": "b"}

# Settings of the towers that no array determines.
_IMAGE = {
    "activation": "gelu_tanh",
    "class_position": False,
    "final_norm": "before_pool",
    "layer_scale": None,
    "norm_epsilon": 1e-6,
    "patch_bias": True,
    "positions": "learned",
    "pre_norm": False,
}
_TEXT = {
    "activation": "gelu_tanh",
    "causal": False,
    "layer_scale": None,
    "mask_padding": False,
    "norm_epsilon": 1e-6,
    "pool": "last",
}


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is an .npz file."""
    return path.suffix == ".npz" and path.is_file()


def read(path: pathlib.Path) -> FLIP:
    """The two towers in the file, the blocks stacked (scan) or one by one.

    Sizes and heads are those of the arrays. The other settings are SigLIP's: the text's last token, no
    limit of the logit scale, pixels from -1 to 1, SentencePiece (without its model).

    Raises:
        ConfigurationError: the file is damaged or holds pickled objects, or its arrays are not two such
            towers; the message lists them.
    """
    path = pathlib.Path(path)
    arrays = _unstacked(read_npz(path))
    model = _model(arrays, path)
    model.build()
    load(model, entries(model), arrays, str(path))
    return model


def write(model: FLIP, path: pathlib.Path):
    """Writes the parameters under big_vision's names, `params/...`, block by block.

    Raises:
        ConfigurationError: the message names the options that big_vision lacks.
    """
    refuse(list(_problems(model)), "big_vision's .npz can't express this model")
    arrays: dict[str, Any] = dict(dump(model, entries(model)))
    if model.max_logit_scale is not None:  # big_vision clips nowhere
        arrays["t"] = np.clip(
            arrays["t"], np.float32(0), np.float32(math.log(model.max_logit_scale))
        )
    with path.open("wb") as file:
        np.savez(file, **{f"params/{name}": array for name, array in arrays.items()})


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters in the file, float32, by their names below `params/` if there is such a part."""
    refuse_pickle(path)
    arrays, problems = {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if any(name.startswith("params/") for name in names):  # beside an optimizer's state
                names = [name for name in names if name.startswith("params/")]
            for name in names:
                try:
                    with archive.open(f"{name}.npy") as file:
                        array = np.lib.format.read_array(file, allow_pickle=False)
                except (
                    EOFError,
                    KeyError,
                    OSError,
                    ValueError,
                    zipfile.BadZipFile,
                    zlib.error,
                ) as damage:
                    problems.append(f"{name}: {damage}")
                    continue
                if array.dtype == "V2":  # NumPy has no bfloat16
                    array = array.view(ml_dtypes.bfloat16)
                arrays[name.removeprefix("params/")] = array.astype("float32", copy=False)
    except (OSError, zipfile.BadZipFile) as damage:
        raise ConfigurationError(
            f"Expected an .npz file. Received: {path}, which is cut short or none: {damage}"
        ) from damage
    refuse(problems, f"{path} is damaged")
    return arrays


def entries(model: FLIP) -> list[Entry]:
    """What each array holds."""
    return [_entry(model, path) for path in weights(model)]


def _entry(model, path):
    part, _, rest = path.partition("/")
    if part in _OTHERS:
        return entry(_OTHERS[part], path, (1,))
    tower, stack = _TOWERS[part.removesuffix("_projection")]
    if part.endswith("_projection"):
        return entry(f"{tower}/head/{rest}", path)
    encoder = getattr(model, part)
    if rest in _OWN:
        name, shape = _OWN[rest], None
        if name == "pos_embedding":
            shape = (1, -1, encoder.dim)
        elif name == "embedding/kernel":
            shape = (encoder.patch_size, encoder.patch_size, 3, encoder.dim)
        return entry(f"{tower}/{name}", path, shape)
    shape = head_shape(rest, encoder.heads, encoder.dim)
    if rest.startswith("pool/"):
        return entry(f"{tower}/MAPHead_0/{flax_name(rest.removeprefix('pool/'))}", path, shape)
    # encoderblock_0, not encoderblock_00
    name = re.sub(r"^encoderblock_(\d+)", lambda m: f"encoderblock_{int(m[1])}", flax_name(rest))
    return entry(f"{tower}/{stack}/{name}", path, shape)


def _unstacked(arrays):
    """Splits blocks that a scan has stacked along a first axis."""
    found = {}
    for name, array in arrays.items():
        if "/encoderblock/" in name:
            for i, part in enumerate(array):
                found[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = part
        else:
            found[name] = array
    return found


def _model(arrays, path):
    """A FLIP of the arrays' sizes."""
    first = "{}/encoderblock_0/{}/kernel"
    needed = {"img/embedding/kernel": 4, "img/pos_embedding": 3}
    needed |= {"txt/Embed_0/embedding": 2, "txt/pos_embedding": 3, "t": 1}
    for tower, blocks in _TOWERS.values():
        needed[first.format(f"{tower}/{blocks}", "MultiHeadDotProductAttention_0/query")] = 3
        needed[first.format(f"{tower}/{blocks}", "MlpBlock_0/Dense_0")] = 2
    lacking = [n for n, rank in needed.items() if n not in arrays or arrays[n].ndim != rank]
    refuse([f"missing: {name}" for name in lacking], f"{path} holds no two towers")

    def stack(part):
        tower, name = _TOWERS[part]
        blocks = {n.split("/")[2] for n in arrays if n.startswith(f"{tower}/{name}/encoderblock_")}
        query = arrays[first.format(f"{tower}/{name}", "MultiHeadDotProductAttention_0/query")]
        hidden = arrays[first.format(f"{tower}/{name}", "MlpBlock_0/Dense_0")].shape[1]
        return {"dim": len(query), "depth": len(blocks), "heads": query.shape[1], "mlp_dim": hidden}

    patches, size = arrays["img/pos_embedding"].shape[1], len(arrays["img/embedding/kernel"])
    side = math.isqrt(patches)
    if side * side != patches:
        raise ConfigurationError(f"Expected positions of a square. Received: {patches} in {path}")
    pooled = any(name.startswith("img/MAPHead_0/") for name in arrays)
    pool = "map" if pooled else "class" if "img/cls" in arrays else "mean"
    own = {"class_token": "img/cls" in arrays, "pool": pool, **_IMAGE}
    image = ViT(side * size, size, **stack("image"), **own)
    vocab, length = len(arrays["txt/Embed_0/embedding"]), arrays["txt/pos_embedding"].shape[1]
    text = TextTransformer(vocab, length, **stack("text"), **_TEXT, padding=1)
    image_head, text_head = (arrays.get(f"{tower}/head/kernel") for tower, _ in _TOWERS.values())
    return FLIP(
        image,
        text,
        mask_ratio=0.0,
        dim=text.dim if text_head is None else text_head.shape[-1],
        image_head=None if image_head is None else "affine",
        text_head=None if text_head is None else "affine",
        temperature=0.1,
        max_logit_scale=None,
        init_logit_bias=-10.0 if "b" in arrays else None,
        preprocessing=Preprocessing("half", interpolation="bilinear", resize_mode="squash"),
        tokenizer=SentencePiece(clean="canonicalize", add_eos=True, pad=1),
    )


def _problems(model):
    """The options that the format can't express."""
    kinds = {"image": (ViT, _IMAGE), "text": (TextTransformer, _TEXT)}
    for part, (kind, settings) in kinds.items():
        tower = getattr(model, part)
        if type(tower) is not kind:
            yield f"{part}={type(tower).__name__}: expected a {kind.__name__}"
            continue
        for name, value in settings.items():
            if (have := getattr(tower, name)) != value:
                yield f"{part}.{name}={have!r}: it is {value!r} there"
        if getattr(model, f"{part}_head") == "linear":
            yield f"{part}_head='linear': heads have a bias there (affine), or there is none"
    if type(model.image) is ViT and model.image.class_token != (model.image.pool == "class"):
        yield f"image.class_token={model.image.class_token}: only pool='class' has one there"
