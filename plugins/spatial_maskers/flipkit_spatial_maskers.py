"""Maskers that read places alone: an even grid, a window, a bell round the centre."""

import math

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
import numpy as np
from keras import ops

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with
register = keras.saving.register_keras_serializable(package="flipkit_spatial_maskers")


@register
class GridMasker(flipkit.Masker):
    """Keeps patches spread evenly: every second row and column at ratio 0.75, a chequerboard at 0.5.

    The regular sampling that MAE compares with random masks (arXiv 2111.06377, Figure 6), for any
    ratio: patches are taken in the order of Bayer's dither matrix (1973), each prefix of which is spread as
    evenly as can be. Each row of the batch begins at a place of its own, so that every patch is seen.
    """

    def call(self, x, keep, *, grid, seed):
        rows, columns = grid
        matrix = bayer(max(grid))
        side = matrix.shape[0]
        row, column = np.divmod(np.arange(rows * columns), columns)
        start = ops.cast(ops.floor(seed.uniform((ops.shape(x)[0], 2)) * side), "int32")
        row = (start[:, :1] + row.astype("int32")) % side
        column = (start[:, 1:] + column.astype("int32")) % side
        order = ops.take(matrix.reshape(-1), row * side + column, axis=0)
        return flipkit.maskers.keep_lowest(order, keep)


def bayer(side: int) -> np.ndarray:
    """Bayer's matrix: int32 (n, n) with each of 0 ... n * n - 1 once, n the next power of two."""
    matrix = np.zeros((1, 1), "int32")
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix.astype("int32")


@register
class CropMasker(flipkit.Masker):
    """Keeps a window at a random place, of about the image's shape: a crop, at the image's resolution.

    The window is the smallest of that shape that holds the kept patches; it drops surplus ones at random.
    A text keeps a run of words.
    """

    def call(self, x, keep, *, grid, seed):
        rows, columns = grid
        height = min(rows, math.ceil(math.sqrt(keep * rows / columns)))
        width = min(columns, math.ceil(keep / height))
        height = math.ceil(keep / width)  # the width was cut where an image is narrow
        row, column = np.divmod(np.arange(rows * columns, dtype="float32"), columns)
        draws = seed.uniform((ops.shape(x)[0], 2 + rows * columns))
        top = ops.floor(draws[:, :1] * (rows - height + 1))
        left = ops.floor(draws[:, 1:2] * (columns - width + 1))
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        return flipkit.maskers.keep_lowest(draws[:, 2:] + ops.where(inside, 0.0, 1.0), keep)


@register
class GaussianMasker(flipkit.Masker):
    """Keeps patches near the centre more often: GLIP (Liang and Larson, arXiv 2403.15837).

    As in the authors' code: the patches with the highest sums of a uniform number and of the density, at
    their place, of a normal distribution round the centre of an image from (-1, -1) to (1, 1).

    Args:
        sigma: the paper's sigma. Its code takes it for the variance of each coordinate, and so does this
            masker: 0.2, its best, is a standard deviation of 0.45 of half the image.
    """

    def __init__(self, sigma=0.2, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(sigma, (int, float)) or not sigma > 0:
            raise flipkit.ConfigurationError(f"Expected sigma above 0. Received: sigma={sigma!r}")
        self.sigma = sigma

    def call(self, x, keep, *, grid, seed):
        density = normal_density(grid, self.sigma)
        draws = seed.uniform((ops.shape(x)[0], density.size))
        return flipkit.maskers.keep_lowest(-(draws + density), keep)

    def get_config(self):
        return {**super().get_config(), "sigma": self.sigma}


def normal_density(grid: tuple[int, int], variance: float) -> np.ndarray:
    """The density of a normal distribution round the centre, float32 (patches,); the grid spans -1 to 1."""
    y, x = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in grid)
    squares = (y[:, None] ** 2 + x**2).reshape(-1)
    return (np.exp(-squares / (2 * variance)) / (2 * np.pi * variance)).astype("float32")


@flipkit.hookimpl
def flipkit_maskers():
    """The names in recipes: `masker="gaussian"`."""
    return {"crop": CropMasker, "gaussian": GaussianMasker, "grid": GridMasker}
