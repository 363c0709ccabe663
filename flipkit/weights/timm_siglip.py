"""SigLIP's image towers in timm, to which open_clip's configs refer by name."""

from flipkit.encoders import ViT
from flipkit.weights.tensors import Entry
from flipkit.weights.torch_layout import convolution, layer_scales, linear, norm, same, stacked

_SIZES = {  # width, depth, heads, hidden units
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# (size, pixels of a patch): {pixels of a picture: activation}, as of timm 1.0. Without
# vit_so400m_patch14_siglip_384, which cuts off 6 of its 384 pixels.
_TOWERS = {
    ("base", 16): {224: "gelu", 256: "gelu", 384: "gelu", 512: "gelu"},
    ("base", 32): {256: "gelu_tanh"},
    ("large", 16): {256: "gelu", 384: "gelu", 512: "gelu_tanh"},
    ("so400m", 14): {224: "gelu", 378: "gelu"},
    ("so400m", 16): {256: "gelu_tanh", 384: "gelu_tanh", 512: "gelu_tanh"},
    ("giantopt", 16): {256: "gelu_tanh", 384: "gelu_tanh"},
}
TRUNK = "visual.trunk"


def towers() -> dict[str, dict]:
    """{timm's name: arguments of the same `ViT`}."""
    found = {}
    for (size, patch), pictures in _TOWERS.items():
        dim, depth, heads, hidden = _SIZES[size]
        for pixels, activation in pictures.items():
            found[f"vit_{size}_patch{patch}_siglip_{pixels}"] = {
                "image_size": pixels,
                "patch_size": patch,
                "dim": dim,
                "depth": depth,
                "heads": heads,
                "mlp_dim": hidden,
                "activation": activation,
                "norm_epsilon": 1e-6,
                "positions": "learned",
                "class_token": False,
                "patch_bias": True,
                "pre_norm": False,
                "pool": "map",
                "final_norm": "before_pool",
                "layer_scale": None,
            }
    return found


def name_of(image: ViT) -> str | None:
    """Timm's name of a tower like `image`; None if it has none such."""
    for name, options in towers().items():
        own = {option: getattr(image, option) for option in options}
        own["mlp_dim"] = image.mlp_dim or 4 * image.dim
        if own == options:
            return name
    return None


def entries(image: ViT) -> list[Entry]:
    """The tower's tensors in open_clip, and the weights of a model in each."""
    pool, ours = f"{TRUNK}.attn_pool", "image/pool"
    return [
        same(f"{TRUNK}.pos_embed", "image/position", (1, image.patches, image.dim)),
        *blocks(image),
        same(f"{pool}.latent", f"{ours}/probe"),
        *linear(f"{pool}.q", f"{ours}/attention/query"),
        *stacked(
            f"{pool}.kv.weight",
            f"{pool}.kv.bias",
            [f"{ours}/attention/{p}" for p in ("key", "value")],
        ),
        *linear(f"{pool}.proj", f"{ours}/attention/out"),
        *norm(f"{pool}.norm", f"{ours}/norm"),
        *linear(f"{pool}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{pool}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def blocks(image: ViT) -> list[Entry]:
    """The tensors that all of timm's ViTs share: patches, blocks, the last norm."""
    found = [
        convolution(
            f"{TRUNK}.patch_embed.proj.weight", "image/patch_embed/kernel", image.patch_size
        ),
        same(f"{TRUNK}.patch_embed.proj.bias", "image/patch_embed/bias"),
        *norm(f"{TRUNK}.norm", "image/norm"),
    ]
    for i in range(image.depth):
        theirs, block = f"{TRUNK}.blocks.{i}", f"image/block_{i:02d}"
        parts = [f"{block}/attention/{part}" for part in ("query", "key", "value")]
        found += norm(f"{theirs}.norm1", f"{block}/attention_norm")
        found += stacked(f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias", parts)
        found += linear(f"{theirs}.attn.proj", f"{block}/attention/out")
        found += norm(f"{theirs}.norm2", f"{block}/mlp_norm")
        found += linear(f"{theirs}.mlp.fc1", f"{block}/mlp/up")
        found += linear(f"{theirs}.mlp.fc2", f"{block}/mlp/down")
        found += layer_scales(image, f"{theirs}.ls1", f"{theirs}.ls2", block)
    return found
