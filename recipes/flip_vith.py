"""FLIP ViT-H/14, 50 % masked: 75.5 % zero-shot top-1 on ImageNet from LAION-400M (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794; 512 TPU-v3 cores. From LAION-2B it is 77.6 % after 12.8 billion
pairs and 78.8 % after 25.6 billion (Table 8). As flip_vitl but for the towers of Table 9 and a longer
warm-up (Table 10).

flipkit run flip_vith data.path='/data/laion400m/*.tar' distribution=data_parallel
flipkit run flip_vith pairs=25.6e9 data.path='/data/laion2b/*.tar'
"""

from flip_vitl import recipe as flip_vitl

import flipkit

SIZES: dict[str, object] = {  # Table 9
    "model.image.patch_size": 14,
    "model.image.dim": 1280,
    "model.image.depth": 32,
    "model.image.heads": 16,
    "model.text.dim": 1024,
    "model.text.depth": 24,
    "model.text.heads": 16,
    "model.dim": 1024,
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
    """The ViT-H/14 of Table 9; the rest, and what the arguments mean, is flip_vitl's."""
    run = flip_vitl(
        batch_size,
        pairs,
        mask_ratio,
        tuning,
        image_size,
        warmup=256_000_000,
        dtype=dtype,
    )
    return flipkit.scaled(run.with_overrides(SIZES), scale)
