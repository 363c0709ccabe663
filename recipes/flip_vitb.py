"""FLIP ViT-B/16, 50 % masked, on LAION-400M: 68.0 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794. As flip_vitl but for the towers of Table 9.

python -m flipkit.run flip_vitb data.path='/data/laion400m/*.tar' distribution=data_parallel
"""

from flip_vitl import recipe as flip_vitl

import flipkit


def recipe(
    batch_size=65_536,
    pairs=12_800_000_000,
    mask_ratio=0.5,
    image_size=224,
    dtype="mixed_bfloat16",
):
    """The ViT-B/16 of Table 9; the rest is flip_vitl's."""
    run = flip_vitl(batch_size, pairs)
    run.model = flipkit.FLIP(
        flipkit.ViT(image_size, patch_size=16, dim=768, depth=12, heads=12, dtype=dtype),
        flipkit.TextTransformer(vocab=30_522, length=32, dim=512, depth=12, heads=8, dtype=dtype),
        mask_ratio=mask_ratio,
        dim=512,
        tokenizer="wordpiece",
        dtype=dtype,
    )
    return run
