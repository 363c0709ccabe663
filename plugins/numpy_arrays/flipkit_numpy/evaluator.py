"""Uniformity and alignment of a model's embeddings on the unit sphere (arXiv 2005.10242)."""

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
import numpy as np


@keras.saving.register_keras_serializable(package="flipkit_numpy")
class Sphere(flipkit.registry.Configurable):
    """Alignment of pictures with their texts, and uniformity of pictures (Wang and Isola); lower is better.

    Args:
        data: a dataset, its name, or a shard pattern.

    Returns, when called with a model:
        `uniformity`, the logarithm of the mean of exp(-2 * squared distance) over pairs of pictures;
        `alignment`, of a model that embeds texts, the mean squared distance of a picture from a text.
    """

    def __init__(self, data):
        self.data = data

    def __call__(self, model):
        images, samples = flipkit.evaluation.encode(model, flipkit.datasets.get(self.data))
        apart = 2 - 2 * images @ images.T
        pairs = ~np.eye(len(images), dtype=bool)
        found = {"uniformity": float(np.log(np.mean(np.exp(-2 * apart[pairs]))))}
        if hasattr(model, "encode_texts"):
            texts = model.encode_texts([sample["texts"][0] for sample in samples])
            found["alignment"] = float(np.mean(np.sum((images - texts) ** 2, axis=1)))
        return found
