"""FLIP ViT-L/16, 50 % masked, on LAION-400M: the paper's main model.

Li et al., "Scaling Language-Image Pre-training via Masking", CVPR 2023, arXiv 2212.00794: 74.3 % zero-shot
top-1 on ImageNet after 32 epochs (Table 2), 256 TPU-v3 cores. Numbers are the paper's unless said.

python -m flipkit.run flip_vitl data.path='/data/laion400m/*.tar' distribution=data_parallel
"""

import flipkit


def recipe(
    batch_size=65_536,
    pairs=12_800_000_000,  # 32 epochs of 400M; 6.4 and 12.8 epochs in the ablations (Table 1)
    mask_ratio=0.5,
    image_size=224,
    base_rate=4e-6,  # per 256 pairs (Table 10)
    warmup=51_200_000,  # samples (Table 10)
    dtype="mixed_bfloat16",  # the paper's float32 runs on TPU as bfloat16 passes; about 1.1 times as fast
):
    """The ViT-L/16 of Table 9 under the schedule of Table 10."""
    image = flipkit.ViT(
        image_size,
        patch_size=16,
        dim=1024,
        depth=24,
        heads=16,
        pool="mean",  # global average pooling, the class token included, as the official code does
        remat=True,  # 65,536 pairs on 256 cores of 16 GB need it
        dtype=dtype,
    )
    text = flipkit.TextTransformer(
        vocab=30_522,  # BERT's uncased WordPiece
        length=32,
        dim=768,
        depth=12,
        heads=12,
        pool="first",  # the official code's; no [CLS] goes before the words
        remat=True,
        dtype=dtype,
    )
    return flipkit.Run(
        flipkit.FLIP(
            image, text, mask_ratio=mask_ratio, dim=768, tokenizer="wordpiece", dtype=dtype
        ),
        data=flipkit.ImageTextShards(),  # set data.path
        feed=flipkit.Feed(
            crop=(0.5, 1.0), flip=True, workers=8
        ),  # the official code's augmentation
        optimizer=flipkit.AdamW(
            beta_1=0.9,
            beta_2=0.95,
            weight_decay=0.2,
            no_decay=["bias", "gamma", "beta", "position"],
        ),
        phases=[
            flipkit.Phase(
                pairs,
                batch_size,
                flipkit.WarmupCosine(
                    peak=base_rate * batch_size / 256,
                    # A shortened run keeps a tenth of its length at most for the warm-up.
                    warmup=min(warmup, pairs // 10),
                ),
            )
        ],
        log_every=min(100, max(1, pairs // batch_size)),
        checkpoint_every=2_000,
    )
