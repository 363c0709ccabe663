"""CLIP ViT-B/16, the baseline that masks nothing: 68.2 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794: their reproduction of CLIP, trained as FLIP but for the mask.

python -m flipkit.run clip_vitb data.path='/data/laion400m/*.tar' distribution=data_parallel
"""

from flip_vitb import recipe as flip_vitb

import flipkit


def recipe(
    batch_size=32_768,
    pairs=12_800_000_000,
    data_set="laion400m",
    image_size=224,
    dtype=None,
    official_code=False,
    scale="full",
):
    """flip_vitb without a mask or tuning; half the batch, which takes FLIP's memory (Table 1a)."""
    run = flip_vitb(
        batch_size,
        pairs,
        mask_ratio=0.0,
        tuning=False,
        data_set=data_set,
        image_size=image_size,
        dtype=dtype,
        official_code=official_code,
    )
    return flipkit.scaled(run, scale)
