"""Patches of pictures: cutting, selecting, and their positions."""

import numpy as np
from keras import ops


def patchify(images, patch_size: int):
    """(batch, height, width, channels) -> (batch, patches, patch_size * patch_size * channels).

    Patches run row by row; so do the pixels of a patch, channels fastest. Any dtype.
    """
    _, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = ops.reshape(images, (-1, rows, patch_size, columns, patch_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows * columns, patch_size * patch_size * channels))


def unpatchify(patches, patch_size: int, grid: tuple[int, int]):
    """The inverse of `patchify`: (batch, patches, pixels) -> (batch, height, width, channels)."""
    rows, columns = grid
    channels = patches.shape[-1] // patch_size**2
    x = ops.reshape(patches, (-1, rows, columns, patch_size, patch_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, rows * patch_size, columns * patch_size, channels))


def gather(x, ids):
    """(batch, tokens, ...) and ids (batch, kept) -> (batch, kept, ...): each row by its own ids."""
    shape = (-1, ids.shape[1]) + (1,) * (len(x.shape) - 2)
    return ops.take_along_axis(x, ops.reshape(ids, shape), axis=1)


def sincos_positions(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, float32 (rows * columns, dim); `dim` divisible by 4.

    As in MAE and the official FLIP: the first half encodes the column, the second the row, each as
    sines followed by cosines of wavelengths from 2 pi to 10,000 * 2 pi.
    """
    frequencies = 10_000.0 ** -(np.arange(dim // 4) / (dim / 4))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [np.outer(place, frequencies) for place in (column, row)]
    halves = [np.concatenate([np.sin(a), np.cos(a)], axis=1) for a in angles]
    return np.concatenate(halves, axis=1).astype("float32")


def resampling(size: int, new_size: int) -> np.ndarray:
    """The matrix that resamples `size` samples of a line to `new_size`: float64 (new_size, size).

    Keys's cubic, stretched where samples become fewer (antialiased), with the weights of every new
    sample summing to 1: what open_clip, big_vision and Pillow call bicubic. At its own size the
    identity.
    """
    step = size / new_size
    places = (np.arange(new_size) + 0.5) * step - 0.5  # samples stand in the middle of their share
    x = np.abs(places[:, None] - np.arange(size)) / max(step, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resample_positions(table, grid: tuple[int, int], new_grid: tuple[int, int]):
    """Positions (rows * columns, dim) of one grid -> (new rows * new columns, dim) of another.

    By their place in the picture, as ViT does it (arXiv 2010.11929, section 3.2): a constant matrix
    times the table, so that a learned table gets a gradient.
    """
    if tuple(grid) == tuple(new_grid):
        return table
    rows, columns = map(resampling, grid, new_grid)
    matrix = np.kron(rows, columns).astype("float32")
    # A fixed table stays a constant of the program.
    return matrix @ table if isinstance(table, np.ndarray) else ops.matmul(matrix, table)
