"""FLIP from scratch on a CPU in minutes: 64-pixel pictures from any tar shards.

flipkit run flip_small data.path='shards/train-*.tar' --workdir runs/small

Made for few pictures seen often, where a plain ViT learns its pictures by heart. Against that helped,
in this order on 4,282 emoji of three vendors, tested on a fourth (docs/performance.md): Muon,
moderate changes of place and colour, outlines (`sketch`), masking.
"""

import math

import keras

import flipkit


def recipe(
    pairs=250_000,
    batch_size=128,
    mask_ratio=0.5,
    tuning=0.1,
    peak=9e-3,
    test=None,
    classnames=None,
    scale="full",
):
    """A ViT of 64 patches beside a text tower of 2 % of its FLOPs, so that masking can show its gain.

    Args:
        tuning: share of the pairs that the image tower sees whole, at the end (FLIP's unmasked tuning).
        test, classnames: labelled shards and a file of class names, for zero-shot while it trains.
        scale: "tiny" makes it a test of seconds.
    """
    image = flipkit.ViT(
        image_size=64,
        patch_size=8,
        dim=128,
        depth=4,
        heads=4,
        class_token=False,
        activation="relu2",
    )
    text = flipkit.TextTransformer(
        vocab=3_000,
        length=14,
        dim=96,
        depth=1,
        heads=3,
        pool="mean",
        mask_padding=True,
        activation="relu2",
    )
    masked = pairs - int(pairs * tuning)
    end = peak * (1 - math.cos(math.pi * tuning)) / 2  # where one cosine over all pairs would be
    phases = [
        flipkit.Phase(
            masked,
            batch_size,
            flipkit.WarmupCosine(peak, warmup=masked // 20, floor=end),
        )
    ]
    if pairs - masked >= batch_size:
        phases.append(
            flipkit.Phase(
                pairs - masked,
                batch_size,
                flipkit.WarmupCosine(end),
                mask_ratio=0.0,
            )
        )
    run = flipkit.Run(
        flipkit.FLIP(
            image,
            text,
            mask_ratio=mask_ratio,
            dim=128,
            tokenizer="wordpiece",
            preprocessing=flipkit.Preprocessing("half"),
        ),
        data=flipkit.ImageTextShards(),  # set data.path
        feed=flipkit.Feed(
            crop=None,
            flip=False,
            captions="first",
            augment=flipkit.Augment(
                sketch=0.6,
                colour=0.5,
                brightness=0.15,
                contrast=0.15,
                saturation=0.6,
                hue=0.04,
                grayscale=0.1,
                scale=(0.55, 1.3),
                ratio=1.25,
                degrees=12.0,
                shift=0.12,
            ),
        ),
        # Matrices take Muon's steps, the rest AdamW's at a third of the rate.
        optimizer=keras.optimizers.Muon(
            learning_rate=peak,
            adam_lr_ratio=1 / 3,
            adam_beta_2=0.98,
            weight_decay=0.2,
            adam_weight_decay=0.0,
            exclude_layers=["position"],
            global_clipnorm=1.0,
        ),
        phases=phases,
        evaluators={"zero_shot": flipkit.ZeroShot(test, classnames)} if test else None,
        log_every=50,
        evaluate_every=500,
    )
    return flipkit.scaled(run, scale)
