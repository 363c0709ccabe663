"""SimCLR on captioned shapes: similar pictures, learned without a caption.

flipkit run simclr_shapes --workdir runs/simclr
"""

import flipkit
from flipkit_simclr.model import SimCLR


def recipe(pairs=64_000, batch_size=128, peak=1e-3, scale="full"):
    """A ViT of 64 patches; it learns to ignore crops, colours and mirror images.

    Args:
        pairs: pictures to train on.
        scale: "tiny" makes it a test of seconds.
    """
    run = flipkit.Run(
        SimCLR(flipkit.ViT(64, 8, dim=128, depth=4, heads=4), dim=64),
        data=flipkit.CaptionedShapes("train", image_size=64),
        feed=flipkit.Feed(
            crop=(0.2, 1.0),  # appendix A, from 0.08: shapes are smaller than objects
            augment=flipkit.Augment(
                colour=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
            ),
        ),
        optimizer=flipkit.AdamW(weight_decay=0.05),
        evaluators={
            "neighbours": flipkit.Neighbours(flipkit.CaptionedShapes("test", image_size=64))
        },
        phases=[flipkit.Phase(pairs, batch_size, flipkit.WarmupCosine(peak, warmup=pairs // 10))],
    )
    return flipkit.scaled(run, scale)
