"""timm's image towers with a class token and layer scale, DeiT III's and DINOv2's, in open_clip."""

from flipkit.encoders import ViT
from flipkit.weights.tensors import Entry
from flipkit.weights.timm_siglip import TRUNK, blocks
from flipkit.weights.torch_layout import linear, same, turned

_SIZES = {  # width, depth, heads
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# {name: (size, pixels of a patch, of a picture)}, as of timm 1.0; DINOv2's giant has another MLP.
_DEIT = {
    f"deit3_{size}_patch16_{pixels}": (size, 16, pixels)
    for size in ("small", "base", "large")
    for pixels in (224, 384)
}
_DEIT |= {
    "deit3_medium_patch16_224": ("medium", 16, 224),
    "deit3_huge_patch14_224": ("huge", 14, 224),
}
_DINO = {f"vit_{size}_patch14_dinov2": (size, 14, 518) for size in ("small", "base", "large")}
POOLS = {"token": "class", "": "class", "avg": "mean_patches"}


def towers() -> dict[str, dict]:
    """{timm's name: arguments of the same `ViT`, all but `pool`}."""
    found = {}
    for name, (size, patch, pixels) in (_DEIT | _DINO).items():
        dim, depth, heads = _SIZES[size]
        found[name] = {
            "image_size": pixels,
            "patch_size": patch,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "activation": "gelu",
            "norm_epsilon": 1e-6,
            "positions": "learned",
            "class_position": name in _DINO,
            "final_norm": "before_pool",
            "layer_scale": 1e-5 if name in _DINO else 1e-6,
        }
    return found


def entries(image: ViT, head: str | None) -> list[Entry]:
    """The tensors of the tower and its head (`image_head`), and the weights of a model in each."""
    rows = image.class_position + image.patches
    found = [
        same(f"{TRUNK}.cls_token", "image/class_token"),
        same(f"{TRUNK}.pos_embed", "image/position", (1, rows, image.dim)),
        *blocks(image),
    ]
    if head == "affine":
        return [*found, *linear("visual.head.proj", "image_projection")]
    if head == "linear":
        found.append(turned("visual.head.proj.weight", "image_projection/kernel"))
    return found
