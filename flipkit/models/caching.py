"""Exact gradient caching: the gradient of a whole batch with the memory of a micro-batch.

A contrastive loss needs the embeddings of all pairs at once. Its gradient needs the activations of the
towers, which are a thousand times larger. GradCache (Gao et al., arXiv 2101.06983, section 3) therefore
computes the embeddings micro-batch by micro-batch and keeps no activations. Then it computes the loss and
its gradient to the embeddings, and passes each micro-batch through the towers once more, with its part of
that gradient. The result is the gradient of the whole batch, for one more forward pass.

It is exact only where a row gets the same mask and the same dropout in both passes and in the whole batch.
Random numbers of flipkit are functions of the row, so it does.
"""

import keras
from keras import ops

from flipkit import distribution
from flipkit.errors import ConfigurationError
from flipkit.random import rows_scope

if keras.backend.backend() == "jax":
    import jax
    import jax.numpy as jnp


def check(model, microbatch):
    """Raises unless `model` can be trained in micro-batches of that many rows."""
    if keras.backend.backend() != "jax":
        raise ConfigurationError(
            f"microbatch needs Keras's JAX backend; this process uses {keras.backend.backend()!r}. Leave "
            f"it out. Received: {microbatch=}"
        )
    if isinstance(microbatch, bool) or not isinstance(microbatch, int) or microbatch < 1:
        raise ConfigurationError(
            f"Expected rows of a micro-batch, 1 or more. Received: {microbatch=}"
        )
    if mixing := model.mixing():
        raise ConfigurationError(
            "In micro-batches a gradient is that of the whole batch only where the rows of a batch do not "
            f"mix before the loss. Leave microbatch out. Received: {microbatch=} and {', '.join(mixing)}"
        )


class MicroBatches:
    """How a batch is cut: each micro-batch takes equally many rows of every device.

    Args:
        size: rows of a micro-batch, on all devices together.
        batch: rows of the batch.
    """

    def __init__(self, size, batch):
        self.spread = distribution.rows(batch)
        devices = self.spread.count
        if batch % size or size % devices:
            raise ConfigurationError(
                f"Expected a batch of whole micro-batches, each with equally many rows on {devices} "
                f"device{'s' * (devices != 1)}. Received: microbatch={size} and a batch of {batch}"
            )
        self.count = batch // size

    def split(self, x):
        """(batch, ...) -> (count, size, ...), without communication."""
        parts = ops.reshape(x, (self.spread.count, self.count, -1, *x.shape[1:]))
        parts = ops.reshape(jnp.swapaxes(parts, 0, 1), (self.count, -1, *x.shape[1:]))
        return distribution.constrained(parts, self.spread, 1)

    def join(self, parts):
        """(count, size, ...) -> (batch, ...): what `split` did, undone."""
        x = ops.reshape(parts, (self.count, self.spread.count, -1, *parts.shape[2:]))
        x = ops.reshape(jnp.swapaxes(x, 0, 1), (-1, *parts.shape[2:]))
        return distribution.constrained(x, self.spread)


def loss_and_gradient(
    model, trainable, non_trainable, metrics, x, y, sample_weight, *, training, optimizer_variables
):
    """What `jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)` returns, in micro-batches."""
    batch = next(iter(x.values())).shape[0]
    cut = MicroBatches(model.microbatch, batch)
    parts = jax.tree.map(cut.split, (x, jnp.arange(batch, dtype="int32")))

    def forward(trainable, part):
        """Outputs of a micro-batch, and the values of the variables that the call changed, by index."""
        inputs, rows = part
        with rows_scope(rows):
            outputs, after, losses = model.stateless_call(
                trainable, non_trainable, inputs, return_losses=True, training=training
            )
        if losses:
            raise ConfigurationError(
                "A micro-batch has no part in losses of layers (add_loss, activity_regularizer). Leave "
                f"them or microbatch out. Received: {len(losses)} of them"
            )
        changed = {i: v for i, v in enumerate(after) if v is not non_trainable[i]}
        return outputs, changed

    def first(part):
        outputs, changed = forward(trainable, part)
        known = zip(model.non_trainable_variables, non_trainable, strict=True)
        with keras.StatelessScope(state_mapping=list(known)):
            targets = model.targets(part[0])
        return outputs, changed, targets

    outputs, changed, targets = jax.lax.map(first, parts)
    for index, values in changed.items():
        # Each micro-batch began with the value before the step. A mean over the batch, such as a masker's
        # average of scores, is the mean of theirs; the state of a generator is the same for all.
        mean = jnp.issubdtype(values.dtype, jnp.inexact)
        non_trainable = [*non_trainable]
        non_trainable[index] = jnp.mean(values, axis=0) if mean else values[0]
    targets = jax.tree.map(cut.join, targets)

    def loss(outputs, trainable):
        y_pred = {**jax.tree.map(cut.join, outputs), **({"targets": targets} if targets else {})}
        value, variables = model.stateless_compute_loss(
            trainable, non_trainable, metrics,
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training,
        )  # fmt: skip
        known = zip(model.optimizer.variables, optimizer_variables, strict=True)
        with keras.StatelessScope(state_mapping=list(known)):
            scaled = model.optimizer.scale_loss(value)
        y_pred = model.with_readings(y_pred, trainable)
        return scaled, (value, y_pred, variables[1], variables[2])

    (value, aux), (slopes, gradient) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        outputs, trainable
    )

    def add(gradient, given):
        part, slope = given
        _, back = jax.vjp(lambda trainable: forward(trainable, part)[0], trainable)
        return jax.tree.map(jnp.add, gradient, back(slope)[0]), None

    gradient, _ = jax.lax.scan(add, gradient, (parts, slopes))
    return (value, aux), gradient
