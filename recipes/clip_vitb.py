"""CLIP ViT-B/16, the baseline that masks nothing: 68.2 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794: their reproduction of CLIP, trained as FLIP but for the mask; the
batch is half of FLIP's, for the same memory.

python -m flipkit.run clip_vitb data.path='/data/laion400m/*.tar' distribution=data_parallel --workdir runs/clip
"""

from flip_vitb import recipe as flip_vitb


def recipe(batch_size=32_768, mask_ratio=0.0, **dials):
    """flip_vitb without a mask."""
    return flip_vitb(batch_size=batch_size, mask_ratio=mask_ratio, **dials)
