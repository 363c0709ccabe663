"""Torch's layout of flipkit's layers: transposed kernels, convolutions, stacked q, k, v."""

import math

import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.layers import sincos_positions
from flipkit.models.flip import FLIP
from flipkit.weights.tensors import Entry

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DDP's, torch.compile's, Lightning's
_NO_WEIGHTS = ("attn_mask", "context_length", "input_resolution", "position_ids", "vocab_size")


def own_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` by the model's own names, without those that are no weights.

    It removes the prefixes of wrappers around the model, if all names have them. Masks, ids of positions
    and sizes, which some files hold too, follow from the config.
    """

    def wrapper():
        return next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors)), None)

    while tensors and (prefix := wrapper()):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _NO_WEIGHTS
    }


def same(name: str, path: str, shape=None) -> Entry:
    """The same numbers in the same order, in `shape`; None is ours."""

    def encode(parts):
        return np.reshape(parts[0], parts[0].shape if shape is None else shape)

    return Entry(name, (path,), encode, lambda tensor, shapes: [tensor.reshape(shapes[0])])


def turned(name: str, path: str) -> Entry:
    """A kernel (in, out) as torch has it: (out, in)."""
    return Entry(name, (path,), lambda parts: parts[0].T, lambda tensor, shapes: [tensor.T])


def linear(name: str, path: str) -> list[Entry]:
    """A Dense layer with its bias."""
    return [turned(f"{name}.weight", f"{path}/kernel"), same(f"{name}.bias", f"{path}/bias")]


def norm(name: str, path: str) -> list[Entry]:
    """A LayerNorm."""
    return [same(f"{name}.weight", f"{path}/gamma"), same(f"{name}.bias", f"{path}/beta")]


def stacked(weight: str, bias: str, layers: list[str]) -> list[Entry]:
    """Dense layers in one tensor, one after the other, as query, key and value often are."""

    def split(tensor):
        return np.split(tensor, len(layers))

    kernels = Entry(
        weight,
        tuple(f"{layer}/kernel" for layer in layers),
        lambda parts: np.concatenate([part.T for part in parts]),
        lambda tensor, shapes: [part.T for part in split(tensor)],
    )
    biases = Entry(
        bias,
        tuple(f"{layer}/bias" for layer in layers),
        np.concatenate,
        lambda tensor, shapes: split(tensor),
    )
    return [kernels, biases]


def stacked_attention(name: str, path: str) -> list[Entry]:
    """A torch.nn.MultiheadAttention: query, key and value in one tensor."""
    parts = [f"{path}/{part}" for part in ("query", "key", "value")]
    return [
        *stacked(f"{name}.in_proj_weight", f"{name}.in_proj_bias", parts),
        *linear(f"{name}.out_proj", f"{path}/out"),
    ]


def layer_scales(tower, attention: str, mlp: str, block: str) -> list[Entry]:
    """The factors of both branches of a block of `tower`, where it has any."""
    if tower.layer_scale is None:
        return []
    names = {attention: "attention_scale", mlp: "mlp_scale"}
    return [same(f"{name}.gamma", f"{block}/{own}/gamma") for name, own in names.items()]


def convolution(name: str, path: str, patch_size: int) -> Entry:
    """A kernel (pixels of a patch, dim), channels fastest, as a convolution's (dim, 3, size, size)."""

    def encode(parts):
        return parts[0].reshape(patch_size, patch_size, 3, -1).transpose(3, 2, 0, 1)

    def decode(tensor, shapes):
        return [tensor.transpose(2, 3, 1, 0).reshape(shapes[0])]

    return Entry(name, (path,), encode, decode)


def positions(name: str, image: ViT, bias: bool = False) -> Entry:
    """Positions as one table, (patches, dim) after a row for a class token, however `image` makes them.

    Args:
        name: of the table.
        image: the tower.
        bias: whether the patch embedding's bias is added to the patches' rows, where it makes the same
            sum: CLIP's patch embedding has none.
    """
    paths = ["image/position"] if image.positions == "learned" else []
    paths += ["image/patch_embed/bias"] if bias else []

    def encode(parts):
        parts = list(parts)
        learned = image.positions == "learned"
        table = parts.pop(0) if learned else sincos_positions(image.grid, image.dim)
        first = np.zeros((int(image.class_token), image.dim), "float32")
        if image.class_position:
            first, table = table[:1], table[1:]
        return np.concatenate([first, table + parts[0] if parts else table])

    def decode(tensor, shapes):
        return [tensor[len(tensor) - shape[0] :] for shape in shapes]

    return Entry(name, tuple(paths), encode, decode)


def position_options(table: np.ndarray, grid: tuple[int, int]) -> dict:
    """The arguments of a ViT with the positions (1 + patches, dim) of a file.

    A class token whose row is zeros has no position of its own. A table that equals the sine-cosine table
    to float32's rounding becomes that.
    """
    if table.ndim != 2 or len(table) != 1 + math.prod(grid) or table[0].any():
        return {"positions": "learned", "class_position": True}
    fixed = sincos_positions(grid, table.shape[1]) if table.shape[1] % 4 == 0 else table[1:] + 1
    sincos = np.allclose(table[1:], fixed, rtol=0, atol=1e-6)
    return {"positions": "sincos" if sincos else "learned", "class_position": False}


def logit_scale(model: FLIP, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with a `logit_scale` that means the same where nothing clips it."""
    if model.max_logit_scale is not None:
        limit = np.float32(math.log(model.max_logit_scale))
        tensors["logit_scale"] = np.clip(tensors["logit_scale"], np.float32(0), limit)
    return tensors


def logit_scale_limit(logit_scale: np.ndarray) -> float | None:
    """The `max_logit_scale` that clips nothing from a stored logit scale: CLIP's 100, or None.

    open_clip and transformers don't clip in the forward pass; CLIP's training keeps it to 100.
    """
    clipped = np.clip(logit_scale, np.float32(0), np.float32(math.log(100.0)))
    return 100.0 if np.array_equal(clipped, logit_scale) else None


# Models that torch's formats can't express ------------------------------------------------------


def tower_problems(model: FLIP) -> list[str]:
    """The differences between the towers and CLIP's and SigLIP's transformers, a line each."""
    problems = []
    if type(model.image) is not ViT:
        problems.append(f"image={type(model.image).__name__}: expected a ViT")
    if type(model.text) is not TextTransformer:
        problems.append(f"text={type(model.text).__name__}: expected a TextTransformer")
    elif model.text.mask_padding:
        problems.append("text.mask_padding=True: padding is never hidden there")
    return problems
