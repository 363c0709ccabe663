"""FLIP ViT-L/14, tuned without masks from ViT-L/16: 74.6 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794. The paper does not state how patches of 16 pixels become 14:
here the patch embedding is resampled as FlexiViT's (arXiv 2212.08013); positions are computed.
With image_size=336 it is tuned at the size at which CLIP's L/14 ends (arXiv 2103.00020); of a FLIP at that
size the paper has no figures.

flipkit run flip_vitl14 init=runs/flip_vitl/model.keras data.path='/data/laion400m/*.tar'
"""

from flip_vitl import recipe as flip_vitl

import flipkit


def recipe(
    init="runs/flip_vitl/model.keras",
    batch_size=65_536,
    image_size: int | tuple[int, int] = 224,
    dtype="mixed_bfloat16",
    scale="full",
):
    """The second phase of flip_vitl, by itself and with smaller patches.

    Args:
        init: an L/16 that `flipkit.load_pretrained` reads.
    """
    run = flip_vitl(batch_size, image_size=image_size, dtype=dtype)
    changes = {"model.image.patch_size": 14, "phases": run.phases[1:], "init": init}
    return flipkit.scaled(run.with_overrides(changes), scale)
