"""Linear probe of a FLIP's image tower: 83.6 % on ImageNet for ViT-L/16 (Table 3).

Li et al., CVPR 2023, arXiv 2212.00794, section 4.2 and Table 11, after MAE (arXiv 2111.06377, appendix A):
a batch normalisation and a linear layer on frozen features. Unmarked numbers are the paper's.

flipkit run linear_probe init=runs/vitl/model.keras data.path='imagenet/train-*.tar' \
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
    epochs=90,
    warmup_epochs=10,
    batch_size=16_384,
    base_rate=0.01,  # per 256 pictures
    scale="full",
):
    """Trains a head of `classes` outputs; LARS without weight decay.

    Args:
        init: a model that `flipkit.load_pretrained` reads, whose tower to probe. None is a new ViT-L/16.
        classes: how many there are; `names` implies it, too.
        names: text file with a class per line, where the labels are names; its lines are the classes.
        label: field of the samples' .json that holds the class.
        test: labelled shards to judge by, while it trains and at the end.
        images: pictures in an epoch.
        epochs: passes over the pictures.
        warmup_epochs: those in which the learning rate rises.
        base_rate: learning rate for batches of 256; it grows with `batch_size`.
        scale: "tiny" makes it a test on a CPU.
    """
    source = flipkit.weights.describe(init) if init else flip_vitl().model
    data = flipkit.ImageTextShards(label_field=label, classes=names)  # set data.path
    judged = flipkit.ImageTextShards(test, label_field=label, classes=names)
    run = flipkit.Run(
        flipkit.Classifier(
            source.image,
            len(data.classnames()["names"]) if names else classes,
            tower="frozen",
            head_norm="batch",
            preprocessing=source.preprocessing,
        ),
        data=data,
        feed=flipkit.Feed(crop=(0.08, 1.0), flip=True),  # MAE's
        optimizer=flipkit.LARS(momentum=0.9, weight_decay=0.0),
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
    return flipkit.scaled(run, scale)
