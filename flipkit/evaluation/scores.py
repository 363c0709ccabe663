"""Computes ranks from scores. Ties, and scores that are not finite, count as wrong."""

import numpy as np
from absl import logging


def finite(vectors) -> np.ndarray:
    """Returns bool (n,): the rows of (n, dim) whose numbers are all finite."""
    return np.isfinite(vectors).all(axis=1)


def cosines(a, b) -> np.ndarray:
    """Unit vectors (n, dim) and (m, dim) -> (n, m), NaN where one of the two vectors is not finite."""
    sound = [finite(vectors) for vectors in (a, b)]
    # Zeros in their place, since NumPy warns of products with infinite numbers.
    a, b = (np.where(s[:, None], v, 0) for s, v in zip(sound, (a, b), strict=True))
    return np.where(sound[0][:, None] & sound[1], a @ b.T, np.nan)


def ranks(scores, right) -> np.ndarray:
    """Returns the rank of each row's best right column, from 1; infinite if no right score is finite.

    Wrong columns with the same score rank before it, so that a constant model gains nothing. A wrong
    column whose score is not finite ranks last.

    Args:
        scores: (rows, columns), the higher the better.
        right: bool (rows, columns), any number in a row.
    """
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    found = 1.0 + ((scores >= best) & ~right).sum(axis=1)
    return np.where(np.isneginf(best[:, 0]), np.inf, found)


def summary(ranks) -> dict[str, float]:
    """Returns `top1`, `top5`, `mrr` (the mean reciprocal rank) and `count`."""
    top1, top5, mrr = np.mean(ranks <= 1), np.mean(ranks <= 5), np.mean(1 / ranks)
    return {"top1": float(top1), "top5": float(top5), "mrr": float(mrr), "count": len(ranks)}


def count_lost(**parts) -> dict[str, int]:
    """Returns `{"non_finite": number of such vectors}` and logs a warning; {} if all are finite.

    Args:
        parts: vectors by their name in the warning: {"pictures": (n, dim), ...}.
    """
    lost = {name: int((~finite(vectors)).sum()) for name, vectors in parts.items()}
    if not any(lost.values()):
        return {}
    lines = [f"{count:,} of {len(parts[name]):,} {name}" for name, count in lost.items() if count]
    logging.warning(
        "The model's numbers for %s are not finite (NaN or infinite). These count as wrong. It has "
        "diverged, or its dtype overflows.",
        " and ".join(lines),
    )
    return {"non_finite": sum(lost.values())}
