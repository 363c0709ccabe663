"""Fine-tuning of a FLIP's image tower: 86.9 % on ImageNet for ViT-L/16 (Table 3).

Li et al., CVPR 2023, arXiv 2212.00794, section 4.2 and Table 12, after MAE (arXiv 2111.06377, appendix A).
Unmarked numbers are the paper's.

flipkit run fine_tune init=runs/vitl/model.keras data.path='imagenet/train-*.tar' \
    test='imagenet/val-*.tar'
"""

from flip_vitl import recipe as flip_vitl

import flipkit


def recipe(
    init=None,
    classes=1_000,
    names=None,
    label="label",
    test=None,
    images=1_281_167,
    epochs=50,
    warmup_epochs=5,
    batch_size=1_024,
    base_rate=5e-5,  # per 256 pictures
    layer_decay=0.75,
    drop_path=0.2,
    scale="full",
):
    """Trains tower and head; the nearer to the pixels, the slower.

    Args:
        init, classes, names, label, test, images, epochs, warmup_epochs, base_rate, scale: as in
            linear_probe.
        layer_decay: factor on the learning rate from a block to the one before it.
        drop_path: of the last block; it grows from 0 at the first.
    """
    source = flipkit.weights.describe(init) if init else flip_vitl().model
    image = source.image
    data = flipkit.ImageTextShards(label_field=label, classes=names)  # set data.path
    judged = flipkit.ImageTextShards(test, label_field=label, classes=names)
    learned = {"position": image.positions == "learned", "class_token": image.class_token}
    tables = [name for name, there in learned.items() if there]
    run = flipkit.Run(
        flipkit.Classifier(
            image,
            len(data.classnames()["names"]) if names else classes,
            head_stddev=2e-5,  # MAE's
            label_smoothing=0.1,
            mixup=0.8,
            cutmix=1.0,
            preprocessing=source.preprocessing,
        ),
        data=data,
        feed=flipkit.Feed(crop=(0.08, 1.0), flip=True, augment=flipkit.RandAugment(9, 0.5)),
        optimizer=flipkit.AdamW(
            beta_1=0.9,
            beta_2=0.999,
            weight_decay=0.05,
            no_decay=["bias", "gamma", "beta", *tables],  # MAE's
        ),
        phases=[
            flipkit.Phase(
                epochs * images,
                batch_size,
                flipkit.WarmupCosine(base_rate * batch_size / 256, warmup=warmup_epochs * images),
            )
        ],
        evaluators={"test": flipkit.Accuracy(judged)} if test else None,
        init=init,
    )
    run = flipkit.scaled(run, scale).with_override("model.image.drop_path", drop_path)
    rates = flipkit.optimizers.layer_decay(run.model.image, layer_decay)
    return run.with_override("optimizer.rate_scale", rates)
