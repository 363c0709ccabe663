"""CLIP ViT-B/16, the baseline that masks nothing: 68.2 % zero-shot top-1 on ImageNet (Table 2).

Li et al., CVPR 2023, arXiv 2212.00794: their reproduction of CLIP, trained as FLIP but for the mask.

flipkit run clip_vitb data.path='/data/laion400m/*.tar' distribution=data_parallel
"""

from flip_vitb import recipe as flip_vitb

import flipkit

OPENAI = {  # arXiv 2103.00020 and its released models: ViT-B/16 as open_clip and transformers have it
    "model.preprocessing": flipkit.Preprocessing("clip"),
    "model.tokenizer": "clip_bpe",
    "model.text.vocab": 49_408,
    "model.text.length": 77,
    "model.image.positions": "learned",
    "model.image.class_position": True,
    "model.image.patch_bias": False,
    "model.image.pre_norm": True,
    "model.image.pool": "class",
    "model.image.norm_epsilon": 1e-5,
    "model.image.activation": "quick_gelu",
    "model.text.causal": True,
    "model.text.pool": "eos",
    "model.text.norm_epsilon": 1e-5,
    "model.text.activation": "quick_gelu",
}


def recipe(
    batch_size=32_768,
    pairs=12_800_000_000,
    image_size: int | tuple[int, int] = 224,
    dtype="mixed_bfloat16",
    towers="paper",
    scale="full",
):
    """flip_vitb without a mask or tuning; half the batch, which takes FLIP's memory (Table 1a).

    Args:
        towers: "paper" is FLIP's, as the paper's CLIP has them; "openai" is those of CLIP itself, so that
            the model goes out to open_clip and transformers (docs/weights.md).
    """
    if towers not in ("paper", "openai"):
        raise flipkit.ConfigurationError(
            f"Expected towers 'paper' or 'openai'. Received: {towers!r}"
        )
    run = flip_vitb(
        batch_size,
        pairs,
        mask_ratio=0.0,
        tuning=False,
        image_size=image_size,
        dtype=dtype,
    )
    return flipkit.scaled(run.with_overrides(OPENAI if towers == "openai" else {}), scale)
