"""CLIP ViT-L/16, the baseline that masks nothing: 72.4 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794: their reproduction of CLIP, trained as FLIP but for the mask. With
patches of 14 pixels, model.image.patch_size=14, it is their L/14: 73.1 %.

flipkit run clip_vitl data.path='/data/laion400m/*.tar' distribution=data_parallel
"""

from flip_vitl import recipe as flip_vitl

import flipkit


def recipe(
    batch_size=32_768,
    pairs=12_800_000_000,
    image_size: int | tuple[int, int] = 224,
    dtype="mixed_bfloat16",
    scale="full",
):
    """flip_vitl without a mask or tuning; half the batch, which takes FLIP's memory (Table 1a)."""
    run = flip_vitl(
        batch_size,
        pairs,
        mask_ratio=0.0,
        tuning=False,
        image_size=image_size,
        dtype=dtype,
    )
    return flipkit.scaled(run, scale)
