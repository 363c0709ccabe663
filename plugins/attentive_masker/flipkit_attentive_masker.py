"""A masker that uses the image tower: it keeps the patches with the most attention."""

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with
register = keras.saving.register_keras_serializable(package="flipkit_attentive_masker")


@register
class AttentiveMasker(flipkit.Masker):
    """Keeps the patches with the highest scores: A-CLIP (Yang et al., ICCV 2023, arXiv 2212.08653).

    The scores, `tower.scores`, are those of an exponential moving average of the image tower, which sees
    all patches: that costs about one more forward pass without masks. Each call moves the average first, by
    1 - `decay` towards the current tower; the first one takes the tower's weights, from any source. Nothing
    is drawn: an image keeps the same patches until the average has changed.

    The authors' code scores squares of 2 x 2 patches, and lets its decay rise to 1 along a cosine; both
    are left out here.

    Args:
        decay: how much of the average stays, in [0, 1); the authors' code begins at 0.996.
        shrink: the factor by which the average's pictures are smaller; its scores are
            interpolated between patches. With 2 it sees a quarter of the tokens. It has to divide the patch
            size and both sides of the grid.
    """

    needs = ("pixels", "tower")
    expected_failures = {
        "draws_anew_at_every_step": "an image keeps the patches with the most attention, until that moves"
    }

    def __init__(self, decay=0.996, shrink=1, **kwargs):
        # In bfloat16, which has three digits, the average would stand still.
        super().__init__(**{**kwargs, "dtype": "float32"})
        if not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise flipkit.ConfigurationError(
                f"Expected a share in [0, 1). Received: decay={decay!r}"
            )
        if not isinstance(shrink, int) or shrink < 1:
            raise flipkit.ConfigurationError(
                f"Expected an int above 0. Received: shrink={shrink!r}"
            )
        self.decay, self.shrink = decay, shrink
        self.average = None

    def prepare(self, model):
        tower = model.image
        if not callable(getattr(tower, "scores", None)):
            raise flipkit.ConfigurationError(
                "The masker 'attentive' needs the image tower's attention to each patch. "
                f"Expected one with scores(x), such as 'vit'. Received: {type(tower).__name__}"
            )
        self._tower = lambda: tower  # not the tower itself: Keras would call its variables mine too
        self._normalise = model.preprocessing.normalise
        if self.average is None:
            with flipkit.registry.without_tensorflow():
                config = {**tower.get_config(), "name": "average"}
                self.average = type(tower).from_config(config)

    def build(self, input_shape):
        if self.average is None:
            raise flipkit.ConfigurationError(
                "The masker 'attentive' works only in a model, whose image tower it uses: "
                "flipkit.FLIP(..., masker='attentive')"
            )
        self.updates = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="updates"
        )
        self.average.build(input_shape)
        self.average.trainable = False

    def call(self, x, keep, *, grid, seed):
        self._move()
        x, seen = self._normalise(x), tuple(grid)
        if self.shrink > 1:
            x, seen = shrunk(x, seen, self.average.patch_size, self.shrink)
        resized = {} if seen == tuple(self.average.grid) else {"grid": seen}
        scores = self.average.scores(x, **resized)
        if self.shrink > 1:
            scores = ops.reshape(scores, (-1, *seen, 1))
            scores = ops.image.resize(scores, grid, data_format="channels_last")
            scores = ops.reshape(scores, (-1, grid[0] * grid[1]))
        return flipkit.maskers.keep_lowest(-scores, keep)

    def _move(self):
        first = ops.equal(self.updates, 0)
        for mean, weight in zip(self.average.weights, self._tower().weights, strict=True):
            now = ops.stop_gradient(ops.convert_to_tensor(weight))
            moved = self.decay * mean + (1 - self.decay) * now
            mean.assign(ops.where(first, now, moved))
        self.updates.assign_add(1)

    def get_config(self):
        return {**super().get_config(), "decay": self.decay, "shrink": self.shrink}


def shrunk(x, grid, patch_size, times):
    """Patches (batch, patches, pixels) -> those of pictures that are `times` smaller, and their grid.

    A pixel of the small picture is the mean of `times` x `times`.
    """
    rows, columns = grid
    if rows % times or columns % times or patch_size % times:
        raise flipkit.ConfigurationError(
            f"Pictures {times} times smaller have no whole patches: expected a grid and a patch size that "
            f"{times} divides. Received: shrink={times}, a grid {grid} and patches of {patch_size} pixels"
        )
    small, rows, columns = patch_size // times, rows // times, columns // times
    x = ops.reshape(x, (-1, rows, times, columns, times, small, times, small, times, 3))
    x = ops.transpose(ops.mean(x, axis=(6, 8)), (0, 1, 3, 2, 5, 4, 6, 7))
    return ops.reshape(x, (-1, rows * columns, 3 * patch_size**2)), (rows, columns)


@flipkit.hookimpl
def flipkit_maskers():
    """The name in recipes: `masker="attentive"`."""
    return {"attentive": AttentiveMasker}
