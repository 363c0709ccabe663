"""Tensors between files and a model: checked when read, assigned by name."""

import dataclasses
import itertools
import json
import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np
import safetensors.numpy
from keras import ops

from flipkit import files, layers
from flipkit.encoders import shape_only
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical

# Files whose reader unpickles them, which runs the code that they hold.
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")

_SHOWN = 20  # problems that an error lists; it counts the others
_HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors library

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": ml_dtypes.bfloat16,
    "F32": "float32",
    "F64": "float64",
}


def refuse_pickle(path):
    """Raises ConfigurationError if `path` is a pickle: by its ending, its zip index or its bytes.

    A pickle is a program; reading it runs it. flipkit reads none.
    """
    path = pathlib.Path(path)
    reason = None
    if path.suffix.lower() in PICKLE_SUFFIXES:
        reason = f"files that end in {path.suffix} are pickles"
    elif path.is_file():
        with path.open("rb") as file:
            start = file.read(2)
        # Protocol 2 and later: the opcode PROTO and its number.
        if len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
            reason = "its first bytes are a pickle's"
        elif start == b"PK" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist()):
                    reason = "it is a zip that holds data.pkl, as torch.save writes it"
    if reason:
        raise ConfigurationError(
            f"Expected weights without code. Received: {path}, a pickle ({reason}), which could run "
            "anything when it is read. Where you trust it, and with torch, two lines of Python make a "
            f"file of tensors of it:\n\n{remedy(path)}"
        )


def remedy(path: pathlib.Path) -> str:
    """Two lines of Python that write a pickle's tensors beside it, named as in its folder."""
    theirs = (path.parent / "config.json").is_file()  # transformers'; open_clip's has another name
    name = "model.safetensors" if theirs else "open_clip_model.safetensors"
    target = str(path.with_name(name))
    return (
        "import torch, safetensors.torch; "
        f"found = torch.load({str(path)!r}, map_location='cpu', weights_only=True)\n"
        "safetensors.torch.save_file({name.removeprefix('module.'): tensor.contiguous().clone() "
        f"for name, tensor in found.get('state_dict', found).items()}}, {target!r})"
    )


def read_safetensors(path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, read-only views of it.

    Raises:
        ConfigurationError: the file is a pickle, cut short, or its header contradicts it; the message
            lists every tensor that is outside the file, overlaps another or has the wrong size.
    """
    path = pathlib.Path(path)
    refuse_pickle(path)
    header, start = _read_header(path)
    data = np.memmap(path, "uint8", "r", offset=start) if path.stat().st_size > start else None
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        flat = np.zeros(0, dtype) if first == last else data[first:last].view(dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _read_header(path) -> tuple[dict, int]:
    """The checked header of a safetensors file, without its metadata, and where its data begin."""
    if not path.is_file():
        raise ConfigurationError(f"Expected a safetensors file. Received: {path}, which is none.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ConfigurationError(
                f"{path} is no safetensors file, or cut short: its header claims {length} bytes, the "
                f"file has {size}."
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:  # of JSON or of its UTF-8, or a name that comes twice
        raise ConfigurationError(f"The header of {path} can't be read: {error}") from error
    if not isinstance(header, dict):
        raise ConfigurationError(f"The header of {path} is no table of tensors.")
    header.pop("__metadata__", None)
    problems = [problem for name, entry in header.items() if (problem := _fault(name, entry))]
    if not problems:
        problems = _gaps(header, size - 8 - length)
    refuse(problems, f"{path} is damaged")
    return header, 8 + length


def _once(pairs):
    """A JSON object; raises if a key comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _whole(values) -> bool:
    """Whether `values` is a list of integers from 0 up."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _fault(name, entry):
    """The error in one entry of a header by itself; None if there is none."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return f"{name}: expected dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"{name}: dtype {dtype!r} is not one of {', '.join(DTYPES)}"
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        return f"{name}: shape {shape!r} or data_offsets {offsets!r} are no sizes"
    needed, given = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize, offsets[1] - offsets[0]
    if needed != given:
        return f"{name}: {dtype} {shape} needs {needed} bytes, the header gives it {given}"
    return None


def _gaps(header, size) -> list[str]:
    """Where the tensors overlap, leave a hole or end elsewhere than the file's `size` bytes do."""
    problems, end = [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            problems.append(f"{name}: begins at byte {first}, the tensor before it ends at {end}")
        if last > size:
            problems.append(f"{name}: ends at byte {last}, the data have {size}: cut short")
        end = max(end, last)
    if not problems and end != size:
        problems.append(f"{size - end} bytes belong to no tensor")
    return problems


def write_safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], path):
    """Writes `tensors` to `path`, all of it or nothing."""
    data = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with files.whole(path) as part:
        part.write_bytes(safetensors.numpy.save(data, dict(metadata)))


# Into a model and out of it ---------------------------------------------------------------------


def weights(model) -> dict:
    """The model's variables that weights of others can have: {canonical path: variable}.

    It leaves out `step`, which counts a run's steps, and the states of random numbers.
    """
    found = {canonical(variable.path): variable for variable in model.weights}
    found.pop("step", None)
    return found


def differences(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]):
    """The differences between tensors of shapes `found` and those of shapes `expected`, a line each.

    The lines that `refuse` shows are of every kind: a missing tensor is often there under another name.
    """
    missing = [f"missing: {name} {tuple(expected[name])}" for name in expected if name not in found]
    unexpected = [
        f"unexpected: {name} {tuple(found[name])}" for name in found if name not in expected
    ]
    reshaped = [
        f"reshaped: {name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    kinds = [kind for kind in (missing, unexpected, reshaped) if kind]
    share = _SHOWN // max(1, len(kinds))
    first, rest = [kind[:share] for kind in kinds], [kind[share:] for kind in kinds]
    return list(itertools.chain(*first, *rest))


def refuse(problems: Sequence[str], title: str):
    """Raises one ConfigurationError that lists `problems` under `title`, if there are any."""
    if problems:
        shown = list(problems[:_SHOWN])
        if len(problems) > _SHOWN:
            shown.append(f"and {len(problems) - _SHOWN} more")
        raise ConfigurationError("\n  ".join([f"{title}:", *shown]))


def assign(model, values: Mapping[str, np.ndarray], source: str):
    """Puts `values` into the weights of `model`; no other function does.

    Args:
        model: a `flipkit.FLIP`, built.
        values: {canonical path: array}, one for every weight and no other; `step` may be among them.
        source: the origin of the values, for the error.

    Raises:
        ConfigurationError: lists what is missing, unexpected and reshaped; nothing was assigned.
    """
    targets = weights(model)
    if "step" in values:
        targets["step"] = model.step
    expected = {path: tuple(variable.shape) for path, variable in targets.items()}
    found = {path: np.shape(value) for path, value in values.items()}
    refuse(differences(expected, found), f"The weights of {source} are not this model's")
    for path, variable in targets.items():
        variable.assign(values[path])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a foreign format, and the weights of a FLIP that it holds.

    Args:
        name: the tensor's name in the file.
        paths: canonical paths of the weights in it.
        encode: these weights, in this order -> the tensor.
        decode: the tensor and the weights' shapes -> the weights.
    """

    name: str
    paths: tuple[str, ...]
    encode: Callable[[list[np.ndarray]], np.ndarray]
    decode: Callable[[np.ndarray, list[tuple[int, ...]]], list[np.ndarray]]


def load(model, entries: Sequence[Entry], tensors: Mapping[str, np.ndarray], source: str):
    """Puts a file's tensors into `model`; the error for those that don't fit has the file's names.

    The function builds a model that isn't built once all shapes are right, so that no file can make it
    allocate more than the file holds.
    """
    described = model if model.built else shape_only(model)
    shapes = {path: tuple(variable.shape) for path, variable in weights(described).items()}
    held = sum(tensor.size for tensor in tensors.values())
    beyond = [f"{path} {shape}" for path, shape in shapes.items() if math.prod(shape) > held]
    refuse(beyond, f"The config of {source} needs more than the {held:,} numbers of its file")
    expected = {
        entry.name: entry.encode([np.broadcast_to(0.0, shapes[path]) for path in entry.paths]).shape
        for entry in entries
    }
    # Some files write a number as it is, some as an array of one.
    scalars = {name for name, shape in expected.items() if shape in ((), (1,))}
    found = {
        name: expected[name] if name in scalars and tensor.shape in ((), (1,)) else tensor.shape
        for name, tensor in tensors.items()
    }
    refuse(differences(expected, found), f"The tensors of {source} are not those of its config")
    values = {}
    for entry in entries:
        parts = entry.decode(tensors[entry.name], [shapes[path] for path in entry.paths])
        values |= dict(zip(entry.paths, parts, strict=True))
    if not model.built:
        model.build()
    assign(model, values, source)


def dump(model, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """The weights of `model` as a foreign format has them: {name in the file: float32 array}."""
    values = {path: variable for path, variable in weights(model).items()}
    return {
        entry.name: entry.encode(
            [np.asarray(ops.convert_to_numpy(values[path]), "float32") for path in entry.paths]
        )
        for entry in entries
    }


def resample_positions(table: np.ndarray, grid, new_grid) -> np.ndarray:
    """Learned positions (rows * columns, dim) of one grid -> (new rows * new columns, dim) of another.

    As `flipkit.layers.resample_positions`. Rows before the grid's own, such as a class token's position,
    stay as they are.
    """
    if tuple(grid) == tuple(new_grid):
        return np.asarray(table)
    table, extra = np.asarray(table, "float32"), len(table) - math.prod(grid)
    return np.concatenate([table[:extra], layers.resample_positions(table[extra:], grid, new_grid)])


def resample_patches(kernel: np.ndarray, size: int, new_size: int) -> np.ndarray:
    """A patch embedding (size * size * channels, dim) -> the same for patches of `new_size` pixels a side.

    It maps a patch that was resized, bicubic and antialiased, to what the old one maps the patch itself
    to: exactly where patches grow, by least squares where they shrink (FlexiViT, arXiv 2212.08013,
    section 3.4).
    """
    if size == new_size:
        return np.asarray(kernel)
    inverse = np.linalg.pinv(layers.resampling(size, new_size).T)  # (new size, size)
    old = np.asarray(kernel, "float64").reshape(size, size, -1, kernel.shape[-1])
    new = np.einsum("ir,jc,rcxd->ijxd", inverse, inverse, old)
    return new.reshape(-1, kernel.shape[-1]).astype("float32")
