"""Every image compared with every text, in blocks of texts, on the devices that hold the images.

A batch of n pairs has n x n logits. Their float32 values, and three more arrays of that size for the
gradient, take 16 GiB at n = 32,768. Losses and metrics need a few numbers for each image, over all texts,
and for each text, over all images. `compare` makes those numbers from blocks of logits. It forgets each
block and, for the gradient, computes it again.
"""

import functools
from typing import Any

import keras
from keras import ops

from flipkit import distribution

if keras.backend.backend() == "jax":
    import jax  # lax.scan, custom_vjp and shard_map: Keras has none of them
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

# The largest block of logits: 32 MiB of float32. docs/performance.md compares sizes.
BLOCK = 1 << 23

IMAGES, TEXTS = 1, 0  # blocks of logits are (texts, images): the axis that each of them is on


class Comparison:
    """What to make of many logits: a number for each image, over all texts, and the other way round.

    `logits` is a tuple of arrays (texts, images), one for each model that is compared; `own` is boolean of
    that shape, True where a text meets its own image. `axis` is the one that is reduced.
    """

    def of(self, logits, own, axis) -> tuple:
        """Numbers of a block along an axis: a tuple of arrays that `joined` takes."""
        raise NotImplementedError(f"{type(self).__name__} defines no of(logits, own, axis)")

    def joined(self, parts, highest, total) -> tuple:
        """The numbers of several blocks as those of one.

        Args:
            parts: what `of` returned for each block, in arrays with one more axis or on several devices.
            highest, total: reduce such an array over the blocks.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no joined(parts, highest, total)")

    def result(self, numbers) -> tuple[Any, tuple]:
        """The result (n,) from the numbers of all blocks, and what `slope` needs: a tuple of (n,)."""
        raise NotImplementedError(f"{type(self).__name__} defines no result(numbers)")

    def slope(self, logits, own, kept):
        """The derivative of the results to `logits[0]`; other models do not learn.

        Args:
            kept: what `result` kept, each array with an axis of length 1 where it was reduced.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient: it defines no slope")


def similarity(image, text, scale):
    """Float32 logits (images, texts): images in rows, texts in columns.

    Float32 whatever the towers compute in: differences of large logits decide the gradient.
    """
    image, text = ops.cast(image, "float32"), ops.cast(text, "float32")
    return ops.cast(scale, "float32") * ops.matmul(image, ops.transpose(text))


def compare(comparison: Comparison, images, texts, scales, offset=0.0) -> tuple[Any, Any]:
    """The result of a `Comparison` for each image over all texts, and for each text over all images.

    Args:
        comparison: `Comparison`.
        images, texts: tuples of unit vectors (n, dim), one for each model that is compared.
        scales: tuple of factors of the cosines, one for each model.
        offset: number that is added to all logits.

    Returns:
        Two arrays (n,). Where a `keras.distribution` spreads the batch over devices, each device compares
        its own images with blocks of all texts.
    """
    images, texts = ([ops.cast(x, "float32") for x in vectors] for vectors in (images, texts))
    scales, offset = [ops.cast(x, "float32") for x in scales], ops.cast(offset, "float32")
    mesh, axis, count = distribution.rows(images[0].shape[0])
    if keras.backend.backend() == "jax":
        size = max(BLOCK * count // _length(images), 1)
        if size < _length(texts):
            return _blockwise((comparison, mesh, axis, size), images, texts, scales, offset)
    whole = functools.partial(_whole, comparison, axis=axis)
    if mesh is None:
        return whole(images, texts, scales, offset)
    return _on(mesh, whole, (P(axis), P()), P(axis), P(axis), P(), P())(
        images, texts, scales, offset
    )


def _length(arrays):
    return ops.shape(arrays[0])[0]  # JAX knows it; TensorFlow may not before it runs


def _on(mesh, function, outs, *ins):
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=ins, out_specs=outs)


def _gathered(arrays, axis):
    """Local rows to those of all devices, and the place of the first local one among them."""
    if axis is None:
        return arrays, 0
    whole = [jax.lax.all_gather(x, axis, tiled=True) for x in arrays]
    return whole, _length(arrays) * jax.lax.axis_index(axis)


def _logits(images, texts, scales, offset):
    found = zip(texts, images, scales, strict=True)
    return tuple(similarity(*each) + offset for each in found)


def _own(texts, images, begin, first):
    """Where a text meets its own image: text i of the block is number begin + i, image j first + j."""
    return ops.expand_dims(ops.arange(_length(texts)) + begin, 1) == (
        ops.arange(_length(images)) + first
    )


def _over_devices(comparison, numbers, axis):
    if axis is None:
        return numbers
    reductions = (functools.partial(f, axis_name=axis) for f in (jax.lax.pmax, jax.lax.psum))
    return comparison.joined(numbers, *reductions)


def _whole(comparison, images, texts, scales, offset, axis=None):
    """`compare` in one block: its gradient is the framework's own."""
    texts, first = _gathered(texts, axis)
    logits, own = _logits(images, texts, scales, offset), _own(texts, images, 0, first)
    of_images = comparison.of(logits, own, TEXTS)
    of_texts = _over_devices(comparison, comparison.of(logits, own, IMAGES), axis)
    return comparison.result(of_images)[0], comparison.result(of_texts)[0]


# Blocks, with JAX ----------------------------------------------------------------------------------


def _forward(comparison, size, axis, images, texts, scales, offset):
    """Results, and what the gradient needs, of images and of texts."""
    texts, first = _gathered(texts, axis)

    def block(texts, begin):
        logits, own = _logits(images, texts, scales, offset), _own(texts, images, begin, first)
        return comparison.of(logits, own, TEXTS), comparison.of(logits, own, IMAGES)

    def add(numbers, inputs):
        found, of_texts = block(*inputs)
        both = jax.tree.map(lambda *parts: jnp.stack(parts), numbers, found)
        reductions = (functools.partial(f, axis=0) for f in (jnp.max, jnp.sum))
        return comparison.joined(both, *reductions), of_texts

    of_images, of_texts = _scan(block, add, size, texts)
    return comparison.result(of_images), comparison.result(
        _over_devices(comparison, of_texts, axis)
    )


def _backward(comparison, size, axis, images, texts, scales, offset, kept, slopes):
    """The gradients of images, texts, scales and offset.

    Args:
        kept: of images, of texts: what `Comparison.result` kept.
        slopes: of images, of texts: the gradients of the results.
    """
    whole, first = _gathered(texts, axis)
    factor_of_images, *along_images = [x[None] for x in (slopes[0], *kept[0])]
    of_texts = [slopes[1], *kept[1]]
    (image, *_), (scale, *_) = images, scales

    def block(texts, of_texts, begin):
        cosines = similarity(texts[0], image, 1.0)
        others = _logits(images[1:], texts[1:], scales[1:], offset)
        logits, own = (scale * cosines + offset, *others), _own(texts, images, begin, first)
        slope = factor_of_images * comparison.slope(logits, own, along_images)
        factor, *more = [x[:, None] for x in of_texts]
        slope += factor * comparison.slope(logits, own, more)
        sums = jnp.matmul(slope.T, texts[0]), jnp.sum(slope * cosines), jnp.sum(slope)
        return sums, (jnp.matmul(slope, image),)

    def add(sums, inputs):
        found, of_texts = block(*inputs)
        return jax.tree.map(jnp.add, sums, found), of_texts

    (to_image, to_scale, to_offset), (to_text,) = _scan(block, add, size, whole, of_texts)
    if axis is not None:
        to_text = jax.lax.psum_scatter(to_text, axis, tiled=True)
        to_scale, to_offset = jax.lax.psum((to_scale, to_offset), axis)
    rest = [[jnp.zeros_like(x) for x in arrays[1:]] for arrays in (images, texts, scales)]
    firsts = scale * to_image, scale * to_text, to_scale
    return (*([x, *zeros] for x, zeros in zip(firsts, rest, strict=True)), to_offset)


def _scan(block, add, size, *rows):
    """`block` for all rows, `size` at a time; `add` sums what it returns. The first one may be smaller."""
    count = rows[0][0].shape[0]
    rest = count % size or size
    sums, first = block(*jax.tree.map(lambda x: x[:rest], rows), 0)
    others = jax.tree.map(lambda x: x[rest:].reshape(-1, size, *x.shape[1:]), rows)
    sums, found = jax.lax.scan(add, sums, (*others, jnp.arange(rest, count, size)))
    joined = [
        jnp.concatenate([a, b.reshape(-1, *b.shape[2:])]) for a, b in zip(first, found, strict=True)
    ]
    return sums, tuple(joined)


if keras.backend.backend() == "jax":

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def _blockwise(how, *given):
        return _blockwise_forward(how, *given)[0]

    def _blockwise_forward(how, *given):
        comparison, mesh, axis, size = how
        forward = functools.partial(_forward, comparison, size, axis)
        outs = P(axis), P()
        found = _on(mesh, forward, outs, P(axis), P(axis), P(), P())(*given)
        (of_images, kept_images), (of_texts, kept_texts) = found
        return (of_images, of_texts), (given, (kept_images, kept_texts))

    def _blockwise_backward(how, saved, slopes):
        comparison, mesh, axis, size = how
        backward = functools.partial(_backward, comparison, size, axis)
        pairs, outs = (P(axis), P()), (P(axis), P(axis), P(), P())
        return _on(mesh, backward, outs, *outs, pairs, pairs)(*saved[0], saved[1], slopes)

    _blockwise.defvjp(_blockwise_forward, _blockwise_backward)
