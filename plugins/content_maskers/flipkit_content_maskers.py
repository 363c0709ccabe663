"""Maskers that read the pixels: they drop clusters of similar patches, or keep detailed patches."""

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with
register = keras.saving.register_keras_serializable(package="flipkit_content_maskers")


@register
class ClusterMasker(flipkit.Masker):
    """Drops clusters of similar patches: E-CLIP (Wei et al., CVPR 2024, arXiv 2405.08815).

    It draws a few patches, the anchors, at random and drops them with the patches near to one of them, by
    the cosine of their pixels after each patch is brought to mean 0 and deviation 1. The paper
    fixes the distance, so that images keep different numbers of patches; here the number is fixed and
    each image's distance follows from it.

    Args:
        anchors: share of the patches that are anchors; at least one is. "Less than 5 %" in the paper.
    """

    needs = ("pixels",)

    def __init__(self, anchors=0.03, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(anchors, (int, float)) or not 0 < anchors < 1:
            raise flipkit.ConfigurationError(
                f"Expected a share of anchors in (0, 1). Received: anchors={anchors!r}"
            )
        self.anchors = anchors

    def call(self, x, keep, *, grid, seed):
        patches = x.shape[1]
        x = ops.cast(x, "float32")
        x = x - ops.mean(x, axis=2, keepdims=True)
        # A patch of one colour is similar to no patch, not even itself.
        x = x / ops.maximum(ops.norm(x, axis=2, keepdims=True), 1e-3)
        draws = seed.uniform((ops.shape(x)[0], 2 * patches))
        chosen = flipkit.maskers.keep_lowest(
            draws[:, :patches], max(1, round(self.anchors * patches))
        )
        likeness = ops.matmul(flipkit.layers.gather(x, chosen), ops.transpose(x, (0, 2, 1)))
        nearest = ops.max(likeness, axis=1)
        # Where patches are alike to the last bit, as in a sky of one colour, chance decides.
        return flipkit.maskers.keep_lowest(nearest + 1e-4 * draws[:, patches:], keep)

    def get_config(self):
        return {**super().get_config(), "anchors": self.anchors}


@register
class EntropyMasker(flipkit.Masker):
    """Keeps detailed patches more often: by the entropy of their brightness, in bits.

    Entropies are those of histograms of 16 levels, between 0 (one colour) and 4. A patch with one bit
    more is 2 ** `sharpness` times as likely to be kept next, drawn without replacement (Efraimidis
    and Spirakis, 2006); with `sharpness=0` it is the random masker.

    Args:
        sharpness: the weight of a bit.
    """

    needs = ("pixels",)
    LEVELS = 16

    def __init__(self, sharpness=1.0, **kwargs):
        super().__init__(**kwargs)
        self.sharpness = sharpness

    def call(self, x, keep, *, grid, seed):
        draws = seed.uniform((ops.shape(x)[0], x.shape[1]))
        weights = 2.0 ** (self.sharpness * self.entropy(x))
        return flipkit.maskers.keep_lowest(-ops.log(1.0 - draws) / weights, keep)

    def entropy(self, x):
        """Uint8 patches (batch, patches, pixels) -> bits, float32 (batch, patches)."""
        channels = ops.reshape(ops.cast(x, "float32"), (-1, x.shape[1], x.shape[2] // 3, 3))
        level = ops.floor(ops.mean(channels, axis=3) * (self.LEVELS / 256))
        bits = 0.0
        for i in range(
            self.LEVELS
        ):  # one at a time: a histogram at once would be 16 times as large
            share = ops.mean(ops.cast(level == i, "float32"), axis=2)
            bits -= share * ops.log2(ops.maximum(share, 1e-9))
        return bits

    def get_config(self):
        return {**super().get_config(), "sharpness": self.sharpness}


@flipkit.hookimpl
def flipkit_maskers():
    """The names in recipes: `masker="cluster"`."""
    return {"cluster": ClusterMasker, "entropy": EntropyMasker}
