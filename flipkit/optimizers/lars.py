"""LARS as MAE's linear probe uses it."""

import keras
from keras import ops

from flipkit import checks, keras_inside
from flipkit.registry import register


@register
class LARS(keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888), as MAE's linear probe uses it.

    For a variable w of two axes or more, with d = gradient + weight_decay * w, the update is
    d * trust * |w| / |d|, or d itself where either norm is 0; biases and norms, which have fewer axes,
    take the gradient, without decay. The update goes into a momentum, m = momentum * m + update, and
    w loses learning_rate * m.

    Args:
        learning_rate: a number or a schedule; a `flipkit.Phase` sets its own schedule.
        momentum: 0.9 in MAE and FLIP (Table 11).
        weight_decay: 0 in both.
        trust: size of an update before the learning rate, as a share of its variable's norm.
        kwargs: as in `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.0,
        trust=0.001,
        name="lars",
        **kwargs,
    ):
        check_rate(learning_rate)
        checks.share(momentum=momentum)
        checks.number(least=0, weight_decay=weight_decay)
        checks.number(above=0, trust=trust)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        # Not `weight_decay`: Keras would apply that once more.
        self.momentum, self.decay, self.trust = momentum, weight_decay, trust

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        update = ops.cast(gradient, variable.dtype)
        if len(variable.shape) > 1:
            update = update + self.decay * variable
            size, length = ops.norm(variable), ops.norm(update)
            known = ops.logical_and(size > 0, length > 0)
            ratio = self.trust * size / ops.where(known, length, 1.0)
            update = update * ops.where(known, ratio, 1.0)
        momentum = self._momentums[keras_inside.index_of(self, variable)]
        self.assign(momentum, self.momentum * momentum + update)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * momentum)

    def get_config(self):
        own = {"momentum": self.momentum, "weight_decay": self.decay, "trust": self.trust}
        return {**super().get_config(), **own}


def check_rate(rate):
    """Raises unless `rate` is a learning rate; a schedule checks its own."""
    if rate is None or isinstance(rate, (int, float, str)):
        checks.number(least=0, learning_rate=rate)
