"""FLIP on the built-in captioned shapes: no data, no network, two minutes on two CPU cores.

flipkit run flip_shapes --workdir runs/shapes
"""

import math

import keras

import flipkit


def recipe(pairs=60_000, batch_size=128, mask_ratio=0.5, tuning=0.25, peak=9e-3, scale="full"):
    """A small tower over 64 patches; every argument is sized for a first run on a laptop.

    Args:
        tuning: share of the pairs that the image tower sees whole, at the end (FLIP's unmasked tuning).
        scale: "tiny" makes it a test of seconds.
    """
    masked = pairs - int(pairs * tuning)
    end = peak * (1 - math.cos(math.pi * tuning)) / 2  # where one cosine over all pairs would be
    phases = [
        flipkit.Phase(
            masked, batch_size, flipkit.WarmupCosine(peak, warmup=masked // 20, floor=end)
        )
    ]
    if pairs - masked >= batch_size:
        rate = flipkit.WarmupCosine(end)
        phases.append(flipkit.Phase(pairs - masked, batch_size, rate, mask_ratio=0.0))
    image = flipkit.ViT(image_size=64, patch_size=8, dim=128, depth=4, heads=4, activation="relu2")
    text = flipkit.TextTransformer(
        vocab=512, length=24, dim=96, depth=2, heads=3, pool="mean", activation="relu2"
    )
    run = flipkit.Run(
        flipkit.FLIP(image, text, mask_ratio=mask_ratio, dim=128, tokenizer="wordpiece"),
        data=flipkit.CaptionedShapes(),
        feed=flipkit.Feed(crop=None, flip=False),  # left and right are part of the captions
        # Matrices take Muon's steps, the rest AdamW's at a third of the rate: three times as fast here.
        optimizer=keras.optimizers.Muon(
            learning_rate=peak,
            adam_lr_ratio=1 / 3,
            weight_decay=0.1,
            adam_weight_decay=0.0,
            exclude_layers=["position"],
        ),
        phases=phases,
        evaluators={
            "zero_shot": flipkit.ZeroShot(flipkit.CaptionedShapes("test")),
            "word_order": flipkit.CaptionChoice(flipkit.CaptionedShapes("word_order")),
            "attributes": flipkit.CaptionChoice(flipkit.CaptionedShapes("attributes")),
        },
        log_every=20,
        evaluate_every=60,
    )
    return flipkit.scaled(run, scale)
