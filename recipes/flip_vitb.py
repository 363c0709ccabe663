"""FLIP ViT-B/16, 50 % masked, on LAION-400M: 68.0 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794. As flip_vitl but for the towers of Table 9.

flipkit run flip_vitb data.path='/data/laion400m/*.tar' distribution=data_parallel
"""

from flip_vitl import recipe as flip_vitl

import flipkit

SIZES: dict[str, object] = {  # Table 9
    "model.image.dim": 768,
    "model.image.depth": 12,
    "model.image.heads": 12,
    "model.text.dim": 512,
    "model.text.depth": 12,
    "model.text.heads": 8,
    "model.dim": 512,
    "model.image.remat": "none",  # fits without
    "model.text.remat": "none",
}


def recipe(
    batch_size=65_536,
    pairs=12_800_000_000,
    mask_ratio=0.5,
    tuning=True,
    image_size: int | tuple[int, int] = 224,
    dtype="mixed_bfloat16",
    scale="full",
):
    """The ViT-B/16 of Table 9; the rest, and what the arguments mean, is flip_vitl's."""
    run = flip_vitl(
        batch_size,
        pairs,
        mask_ratio,
        tuning,
        image_size,
        dtype=dtype,
    )
    return flipkit.scaled(run.with_overrides(SIZES), scale)
