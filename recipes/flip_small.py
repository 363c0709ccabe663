"""FLIP from scratch on a CPU in minutes: 64-pixel images from any tar shards.

python -m flipkit.run flip_small data.path='shards/train-*.tar' --workdir runs/small
"""

import flipkit


def recipe(pairs=500_000, batch_size=256, mask_ratio=0.5, peak=1e-3):
    """A small tower and a smaller text tower, so that masking can show its gain."""
    image = flipkit.ViT(image_size=64, patch_size=8, dim=128, depth=4, heads=4)
    text = flipkit.TextTransformer(vocab=4_096, length=12, dim=64, depth=2, heads=2, pool="mean")
    return flipkit.Run(
        flipkit.FLIP(image, text, mask_ratio=mask_ratio, dim=128, tokenizer="wordpiece"),
        data=flipkit.ImageTextShards(text_fields=["captions", "keywords"]),
        feed=flipkit.Feed(crop=(0.5, 1.0), flip=True),
        optimizer=flipkit.AdamW(weight_decay=0.2, no_decay=["bias", "gamma", "beta", "position"]),
        phases=[
            flipkit.Phase(pairs, batch_size, flipkit.WarmupCosine(peak, warmup=pairs // 20)),
        ],
    )
