"""FLIP on characters and their names, tested on fonts it has never seen: no data, no network.

flipkit run flip_characters --workdir runs/characters

`make demo` compares it with no mask and with smaller pictures. A picture is redundant, the model
still improves when the time ends, and the image tower carries the cost: what masking is for.
"""

import math

import keras

import flipkit


def recipe(
    pairs=60_000,
    batch_size=128,
    mask_ratio=0.75,
    image_size: int | tuple[int, int] | None = None,
    tuning=0.0,
    peak: float | None = None,
    scale="full",
):
    """A small tower over 64 patches; every argument is sized for a first run on a laptop.

    Args:
        image_size: pixels of the pictures before the tuning, the other way to fewer patches; None is 64.
        tuning: share of the pairs that the image tower sees whole and large, at the end (FLIP's
            unmasked tuning); a run that sees them so from the start has one phase.
        peak: learning rate; None is the best of a sweep for each (docs/performance.md): 9e-3 with a
            mask, 1.8e-2 without one.
        scale: "tiny" makes it a test of seconds.
    """
    peak = peak or (9e-3 if mask_ratio else 1.8e-2)
    reduced = mask_ratio > 0 or image_size is not None
    last = int(pairs * tuning) if reduced else 0
    first = pairs - last
    end = peak * (1 - math.cos(math.pi * last / pairs)) / 2  # one cosine over all pairs
    rate = flipkit.WarmupCosine(peak, warmup=pairs // 20, floor=end)
    phases = [flipkit.Phase(first, batch_size, rate, image_size=image_size)]
    if last >= batch_size:
        rate = flipkit.WarmupCosine(end)
        phases.append(flipkit.Phase(last, batch_size, rate, mask_ratio=0.0, image_size=64))
    image = flipkit.ViT(image_size=64, patch_size=8, dim=128, depth=4, heads=4, activation="relu2")
    text = flipkit.TextTransformer(
        vocab=1_000,
        length=12,
        dim=96,
        depth=1,
        heads=3,
        pool="mean",
        mask_padding=True,
        activation="relu2",
    )
    window = math.ceil(sum(phase.steps for phase in phases) / 24)  # 8 evaluations
    run = flipkit.Run(
        flipkit.FLIP(image, text, mask_ratio=mask_ratio, dim=128, tokenizer="wordpiece"),
        data=flipkit.NamedCharacters(),
        feed=flipkit.Feed(crop=None, flip=False),  # mirrored characters are others
        # Matrices take Muon's steps, the rest AdamW's at a third of the rate: three times as fast here.
        optimizer=keras.optimizers.Muon(
            learning_rate=peak,
            adam_lr_ratio=1 / 3,
            weight_decay=0.1,
            adam_weight_decay=0.0,
            exclude_layers=["position"],
        ),
        phases=phases,
        evaluators={"zero_shot": flipkit.ZeroShot(flipkit.NamedCharacters("test"))},
        log_every=window,
        evaluate_every=3 * window,
    )
    return flipkit.scaled(run, scale)
