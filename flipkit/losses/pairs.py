"""What losses and metrics ask of every image with every text."""

from keras import ops

from flipkit.losses.blocks import Comparison, compare


def _exps(logits, axis):
    """The largest logit along an axis, and the exp of each less it: no exp overflows."""
    top = ops.stop_gradient(ops.max(logits, axis=axis))
    return top, ops.exp(logits - ops.expand_dims(top, axis))


def _lowered(top, highest):
    """The largest logit of all parts; that of each part less it, and the exp of the difference."""
    top = ops.stop_gradient(top)
    best = highest(top)
    return best, top - best, ops.exp(top - best)


def _shares(logits, top, factor):
    """Softmax from the largest logit and one over the sum; of both in one, float32 would lose digits."""
    return ops.exp(logits - top) * factor


class _CrossEntropy(Comparison):
    """Minus the logarithm of the own one's share in a softmax."""

    def of(self, logits, own, axis):
        top, exps = _exps(logits[0], axis)
        mine = ops.sum(ops.where(own, logits[0], 0.0), axis=axis)
        return top, ops.sum(exps, axis=axis), mine

    def joined(self, parts, highest, total):
        top, exps, mine = parts
        best, _, factor = _lowered(top, highest)
        return best, total(exps * factor), total(mine)

    def result(self, numbers):
        top, exps, mine = numbers
        return (top - mine) + ops.log(exps), (top, 1 / exps)

    def slope(self, logits, own, kept):
        return _shares(logits[0], *kept) - ops.cast(own, "float32")


def _signs(own):
    """-1 for right pairs, 1 for wrong ones."""
    return ops.where(own, -1.0, 1.0)


class _Sigmoid(Comparison):
    """The sum of -log sigmoid(+-logit) = softplus(-+logit), which neither overflows nor cancels."""

    def of(self, logits, own, axis):
        return (ops.sum(ops.softplus(_signs(own) * logits[0]), axis=axis),)

    def joined(self, parts, highest, total):
        return (total(parts[0]),)

    def result(self, numbers):
        return numbers[0], ()

    def slope(self, logits, own, kept):
        return _signs(own) * ops.sigmoid(_signs(own) * logits[0])


class _Divergence(Comparison):
    """The Kullback-Leibler divergence of the first model's softmax from the second's, the teacher's."""

    def of(self, logits, own, axis):
        (top, exps), (best, known) = (_exps(x, axis) for x in logits)
        # Differences of logits less their largest: small numbers, which float32 keeps.
        student, teacher = (
            x - ops.expand_dims(t, axis) for x, t in zip(logits, (top, best), strict=True)
        )
        apart = ops.sum(known * (teacher - student), axis=axis)
        return top, ops.sum(exps, axis=axis), best, ops.sum(known, axis=axis), apart

    def joined(self, parts, highest, total):
        top, exps, best, known, apart = parts
        top, moved, factor = _lowered(top, highest)
        best, moved_too, factor_too = _lowered(best, highest)
        apart = (apart + known * (moved_too - moved)) * factor_too
        return top, total(exps * factor), best, total(known * factor_too), total(apart)

    def result(self, numbers):
        top, exps, best, known, apart = numbers
        return apart / known - ops.log(known) + ops.log(exps), (top, 1 / exps, best, 1 / known)

    def slope(self, logits, own, kept):
        return _shares(logits[0], *kept[:2]) - _shares(logits[1], *kept[2:])


class _Nearest(Comparison):
    """1 where no other logit is above the own one, and all are finite."""

    def of(self, logits, own, axis):
        mine = ops.max(ops.where(own, logits[0], -float("inf")), axis=axis)
        return mine, ops.max(logits[0], axis=axis), ops.max(ops.abs(logits[0]), axis=axis)

    def joined(self, parts, highest, total):
        return tuple(map(highest, parts))

    def result(self, numbers):
        mine, best, largest = numbers
        right = ops.logical_and(mine >= best, ops.isfinite(largest))
        return ops.cast(right, "float32"), ()


CROSS_ENTROPY, SIGMOID, DIVERGENCE, NEAREST = _CrossEntropy(), _Sigmoid(), _Divergence(), _Nearest()


def cross_entropies(image, text, scale):
    """Minus the log of the own text's share in each image's softmax over texts, and the other way round.

    The logits of pairs are elements of the blocks. A product apart rounds them otherwise, by 1e-5 at a
    scale of 100, and devices have to gather the diagonal of one large array.

    Args:
        image, text: unit vectors (n, dim), row i of one belonging to row i of the other.
        scale: factor of the cosines.

    Returns:
        Two float32 arrays (n,).
    """
    return compare(CROSS_ENTROPY, [image], [text], [scale])


def sigmoid_sums(image, text, scale, bias):
    """Of each image (n,), the sum over texts of -log sigmoid(logit + bias), with the sign of each pair."""
    return compare(SIGMOID, [image], [text], [scale], bias)[0]


def divergences(images, texts, scales):
    """Kullback-Leibler divergences of a student's softmaxes from a teacher's; the teacher does not learn.

    Args:
        images, texts: of the student and of the teacher: unit vectors (n, dim).
        scales: of both.

    Returns:
        Of each image's distribution over texts (n,), and of each text's over images (n,).
    """
    (mine, theirs), (own, known), (scale, other) = images, texts, scales
    theirs, known, other = (ops.stop_gradient(x) for x in (theirs, known, other))
    return compare(DIVERGENCE, [mine, theirs], [own, known], [scale, other])


def nearest(image, text, scale):
    """1.0 for each image (n,) whose own text is the nearest, ties included; for each text likewise."""
    image, text, scale = (ops.stop_gradient(x) for x in (image, text, scale))
    return compare(NEAREST, [image], [text], [scale])


def means(image, text, scale):
    """The mean logit of pairs, and that of every image with every text; both without the logits."""
    image, text = ops.cast(image, "float32"), ops.cast(text, "float32")
    right = ops.mean(ops.sum(image * text, axis=-1))
    every = ops.sum(ops.mean(image, axis=0) * ops.mean(text, axis=0))
    return ops.cast(scale, "float32") * right, ops.cast(scale, "float32") * every
