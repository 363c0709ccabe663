"""The official FLIP's checkpoints (facebookresearch/flip): t5x's index in msgpack beside zarr arrays.

The weights are under CC-BY-NC 4.0, not for commercial use; users fetch them for themselves.
"""

import json
import math
import pathlib
import re
import zlib

import msgpack
import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import ConfigurationError
from flipkit.layers import sincos_positions
from flipkit.models.flip import FLIP
from flipkit.tokenizers import WordPiece
from flipkit.weights.flax_names import entry, flax_name
from flipkit.weights.tensors import Entry, load, refuse, weights

HEADS = {512: 8, 768: 12, 1024: 16, 1280: 16}  # width -> heads: Table 9 of arXiv 2212.00794
_POSITIONS = "img_encoder/posembed_encoder/pos_embedding"
_DAMAGE = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, zlib.error)
_OWN = {  # weights outside the stack of blocks
    "class_token": "cls",
    "patch_embed/kernel": "embedding/kernel",
    "patch_embed/bias": "embedding/bias",
    "position": "posembed_encoder/pos_embedding",
    "token_embedding": "token_embedding/embedding",
}


def recognises(path: pathlib.Path) -> bool:
    """Whether `path` is a folder `checkpoint_N`, or holds some."""
    return _checkpoint(path) is not None


def read(path: pathlib.Path, heads: tuple[int, int] | None = None) -> FLIP:
    """The model in a checkpoint, its parameters without the optimizer's moments.

    Sizes are those of the arrays. The other settings are those of the released models: class token
    pooled with the patches, the text's first token, WordPiece (without its vocabulary).

    Args:
        path: a folder `checkpoint_N`, or its parent, of which the newest is read.
        heads: attention heads (image, text); None takes those of Table 9 for the towers' widths.

    Raises:
        ConfigurationError: the index or arrays are missing, damaged or not those of a FLIP; lists them.
    """
    folder = _checkpoint(pathlib.Path(path))
    if folder is None:
        raise ConfigurationError(
            f"Expected a folder checkpoint_N. Received: {path}, which is none."
        )
    arrays = read_arrays(folder)
    model = _model(arrays, heads or (None, None), folder)
    model.build()
    load(model, entries(model), arrays, str(folder))
    return model


def official_name(path: str) -> str:
    """`image/block_00/mlp/up/kernel` -> the name of the same variable in the official code."""
    part, _, rest = path.partition("/")
    tower = {"image": "img", "text": "txt"}.get(part.removesuffix("_projection"))
    if tower is None:
        return path
    if part.endswith("_projection"):
        return f"{tower}_mlp1/{rest}"
    return f"{tower}_encoder/{_OWN.get(rest) or f'Transformer/{flax_name(rest)}'}"


def read_arrays(folder: pathlib.Path, part: str = "target") -> dict[str, np.ndarray]:
    """Arrays of a checkpoint by their official names.

    Args:
        part: "target" is the model's parameters, "state" the optimizer's state.

    Raises:
        ConfigurationError: lists the arrays that are missing or damaged.
    """
    arrays, problems = {}, []
    for name, leaf in _leaves(_index(folder / "checkpoint", part)):
        try:
            arrays[name] = leaf if isinstance(leaf, np.ndarray) else _array(folder, leaf)
        except _DAMAGE as problem:
            problems.append(f"{name}: {type(problem).__name__}: {problem}")
    refuse(problems, f"{folder} is damaged or incomplete")
    return arrays


# The files --------------------------------------------------------------------------------------


def _checkpoint(path):
    """The folder `checkpoint_N` that `path` is, or the newest in it; None if there is none."""
    if (path / "checkpoint").is_file() or re.fullmatch(r"checkpoint_\d+", path.name):
        return path if path.is_dir() else None
    steps = [p for p in path.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d+", p.name)]
    return max(steps, key=lambda p: int(p.name.removeprefix("checkpoint_")), default=None)


def _index(path, part):
    """The tree of arrays and of entries that locate arrays."""
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_flax_array, strict_map_key=False)
        return tree["optimizer"][part]
    except _DAMAGE as problem:
        raise ConfigurationError(
            f"Expected the index of a t5x checkpoint. Received: {path}, which is truncated or none "
            f"({type(problem).__name__}: {problem})."
        ) from problem


def _flax_array(code, data):
    """An array within the index: flax's extensions 1 (array) and 3 (scalar)."""
    if code not in (1, 3):
        raise ValueError(f"unknown msgpack extension {code}")
    shape, dtype, numbers = msgpack.unpackb(data)
    return np.frombuffer(numbers, dtype).reshape(shape)


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and "kvstore" not in value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _array(folder, spec):
    """One array, chunk by chunk. The bucket or folder that it was written to does not matter."""
    folder = folder / pathlib.PurePosixPath(spec["kvstore"]["path"]).name
    header = json.loads((folder / ".zarray").read_bytes())
    shape, chunks, dtype = (
        tuple(header["shape"]),
        tuple(header["chunks"]),
        np.dtype(header["dtype"]),
    )
    kind = (header["zarr_format"], header["order"], header["filters"], header["compressor"]["id"])
    if kind != (2, "C", None, "gzip") or shape != tuple(spec["metadata"]["shape"]):
        raise ValueError(
            f"expected a gzipped zarr 2 array {spec['metadata']['shape']}, found {header}"
        )
    array = np.empty(shape, dtype)
    size = int(np.prod(chunks)) * dtype.itemsize
    for place in np.ndindex(*(-(-n // c) for n, c in zip(shape, chunks, strict=True))):
        chunk = _inflate(folder / (".".join(map(str, place)) or "0"), size)
        where = tuple(slice(i * c, i * c + c) for i, c in zip(place, chunks, strict=True))
        # Chunks at the far edges are stored whole, and reach over the array's end.
        inside = tuple(slice(0, n) for n in array[where].shape)
        array[where] = np.frombuffer(chunk, dtype).reshape(chunks)[inside]
    return array


def _inflate(path, size):
    """The `size` bytes of a gzipped chunk; it never unpacks more, whatever the file claims."""
    stream = zlib.decompressobj(wbits=31)
    data = stream.decompress(path.read_bytes(), size + 1)
    if len(data) != size or not stream.eof:
        raise ValueError(f"chunk {path.name} is cut short or too long; expected {size} bytes")
    return data


# The model --------------------------------------------------------------------------------------


def entries(model: FLIP) -> list[Entry]:
    """The weights in each official array. Fixed positions are not among a model's weights."""
    image, text = model.image, model.text
    size = image.patch_size
    shapes = {
        "image/patch_embed/kernel": (size, size, 3, image.dim),
        "text/position": (1, text.length, text.dim),
        "logit_scale": (1,),
    }
    found = [entry(official_name(path), path, shapes.get(path)) for path in weights(model)]
    return [_positions if e.name == _POSITIONS else e for e in found]


# Learned positions come after a row for the class token, which the official code never uses.
_positions = Entry(
    _POSITIONS,
    ("image/position",),
    encode=lambda values: np.pad(values[0], ((1, 0), (0, 0)))[None],
    decode=lambda tensor, shapes: [tensor[0, 1:]],
)


def _model(arrays, heads, folder):
    """A FLIP of the arrays' sizes; removes fixed positions from `arrays`."""
    needed = [
        "img_encoder/embedding/kernel",
        _POSITIONS,
        "txt_encoder/token_embedding/embedding",
        "txt_encoder/posembed_encoder/pos_embedding",
        "img_encoder/Transformer/encoderblock_00/MlpBlock_0/Dense_0/kernel",
        "txt_encoder/Transformer/encoderblock_00/MlpBlock_0/Dense_0/kernel",
        "img_mlp1/kernel",
    ]
    ranks = dict(zip(needed, (4, 3, 2, 3, 2, 2, 2), strict=True))
    lacking = [n for n in needed if n not in arrays or arrays[n].ndim != ranks[n]]
    refuse([f"missing: {name}" for name in lacking], f"{folder} holds no FLIP")
    patches, table, tokens, places, image_up, text_up, projection = (arrays[n] for n in needed)
    table = table[0, 1:]
    side = math.isqrt(len(table))
    if side * side != len(table):
        raise ConfigurationError(f"Expected positions of a square. Received: {len(table)} patches")
    size, dim = patches.shape[0], patches.shape[-1]
    sincos = table.shape[1] == dim and dim % 4 == 0
    if sincos:
        fixed = sincos_positions((side, side), dim)
        sincos = np.allclose(table, fixed, rtol=0, atol=1e-6)
    if sincos:
        del arrays[_POSITIONS]
    image = ViT(
        side * size,
        size,
        dim,
        **_stack(arrays, "img", image_up, heads[0]),
        positions="sincos" if sincos else "learned",
        class_token="img_encoder/cls" in arrays,
    )
    vocab, dim = tokens.shape
    text = TextTransformer(vocab, places.shape[1], dim, **_stack(arrays, "txt", text_up, heads[1]))
    return FLIP(image, text, dim=projection.shape[1], tokenizer=WordPiece())


def _stack(arrays, tower, up, heads):
    """Depth, heads and hidden units of a tower; `up` is the first kernel of an MLP."""
    prefix = f"{tower}_encoder/Transformer/encoderblock_"
    blocks = {name.removeprefix(prefix).split("/")[0] for name in arrays if name.startswith(prefix)}
    dim, hidden = up.shape
    if heads is None and dim not in HEADS:
        raise ConfigurationError(
            "A t5x checkpoint doesn't store its attention heads, and the paper has no tower of width "
            f"{dim}, only of {sorted(HEADS)}. Set them: load_pretrained(path, heads=(image, text))."
        )
    return {"depth": len(blocks), "heads": heads or HEADS[dim], "mlp_dim": hidden}
