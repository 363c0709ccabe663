"""Optimizers that know their variables by path."""

import contextlib

import keras
from keras import ops

from flipkit import checks, plugins, registry
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.paths import canonical, matches, select
from flipkit.registry import register


@register
class AdamW(keras.optimizers.Optimizer):
    """AdamW as the official FLIP computes it, with groups of variables chosen by path.

    The update is lr * (m / (sqrt(v) + epsilon) + weight_decay * w) with bias-corrected m and v. Keras's
    AdamW adds its epsilon before the correction of v, which is measurably another optimizer.

    Args:
        learning_rate: a number or a schedule; a `flipkit.Phase` sets its own schedule.
        beta_1, beta_2: decay of the moments; FLIP takes 0.9 and 0.95 (Table 10).
        epsilon: 1e-8, as in the official code.
        weight_decay: decoupled, multiplied by the learning rate; 0.2 in FLIP.
        no_decay: patterns of variables that don't decay, as in `flipkit.paths.matches`.
        rate_scale: {pattern: factor on the learning rate}; the last match counts.
        kwargs: as in `keras.optimizers.Optimizer`: `global_clipnorm`, `use_ema`, `ema_momentum`, ...

    Attributes:
        frozen: paths of variables that are there but not trained: a pattern may match one of these alone.
            `flipkit.FLIP.compile` tells them.
    """

    frozen: tuple[str, ...] = ()

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-8,
        weight_decay=0.2,
        no_decay=(),
        rate_scale=None,
        name="adamw",
        **kwargs,
    ):
        _check_rate(learning_rate)
        checks.share(beta_1=beta_1, beta_2=beta_2)
        checks.number(above=0, epsilon=epsilon)
        checks.number(least=0, weight_decay=weight_decay)
        for pattern, factor in (rate_scale or {}).items():
            checks.number(least=0, **{f"rate_scale[{pattern!r}]": factor})
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.decay, self.no_decay = weight_decay, list(no_decay)
        self.rate_scale = dict(rate_scale or {})

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )
        paths = [canonical(variable.path) for variable in variables]
        known = [*paths, *self.frozen]
        exempt = select(self.no_decay, known, role="no_decay")
        select(list(self.rate_scale), known, role="rate_scale")
        self._decays = [0.0 if path in exempt else self.decay for path in paths]
        self._factors = [self._factor(path) for path in paths]

    def _factor(self, path):
        factors = [f for pattern, f in self.rate_scale.items() if matches(pattern, path)]
        return factors[-1] if factors else 1.0

    def update_step(self, gradient, variable, learning_rate):
        i = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._factors[i]
        gradient = ops.cast(gradient, variable.dtype)
        if keras.backend.backend() == "tensorflow":
            # Of a gather it comes in slices, some rows more than once: squares need their sums.
            gradient = ops.add(gradient, ops.zeros_like(variable))
        step = ops.cast(self.iterations + 1, variable.dtype)
        m, v = self._momentums[i], self._velocities[i]
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        mean = m / (1 - ops.power(self.beta_1, step))
        deviation = ops.sqrt(v / (1 - ops.power(self.beta_2, step)))
        update = mean / (deviation + self.epsilon) + self._decays[i] * variable
        self.assign_sub(variable, rate * update)

    def get_config(self):
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        own |= {
            "weight_decay": self.decay,
            "no_decay": self.no_decay,
            "rate_scale": self.rate_scale,
        }
        return {**super().get_config(), **own}


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
        _check_rate(learning_rate)
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
        momentum = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, self.momentum * momentum + update)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * momentum)

    def get_config(self):
        own = {"momentum": self.momentum, "weight_decay": self.decay, "trust": self.trust}
        return {**super().get_config(), **own}


def _check_rate(rate):
    """Refuses a number that is no learning rate; a schedule knows its own."""
    if rate is None or isinstance(rate, (int, float, str)):
        checks.number(least=0, learning_rate=rate)


def layer_decay(encoder, decay: float) -> dict[str, float]:
    """Rates that fall towards an encoder's input, as `AdamW(rate_scale=...)` takes them.

    decay^(depth - i) for block i, decay^(depth + 1) for what is before the blocks (patch embedding,
    class token, positions), 1 for what is after them and for everything else: MAE's fine-tuning,
    0.75 in FLIP's (Table 12).

    Args:
        encoder: one of flipkit's towers, or another with a `depth` and blocks named `block_00`, ...
        decay: factor from a block to the one before it, in (0, 1].
    """
    if not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise ConfigurationError(f"Expected a factor in (0, 1]. Received: {decay=}")
    tower, depth = encoder.name, encoder.depth
    blocks = {f"{tower}/block_{i:02d}": decay ** (depth - i) for i in range(depth)}
    after = ("norm", "pool") if getattr(encoder, "pool", None) == "map" else ("norm",)
    return {tower: decay ** (depth + 1), **blocks, **{f"{tower}/{part}": 1.0 for part in after}}


def get(identifier) -> keras.optimizers.Optimizer:
    """The optimizer that a name (flipkit's first, then Keras's), object or config means."""
    if isinstance(identifier, str) and ":" not in identifier:
        known = plugins.names("optimizers")
        if identifier not in known:
            try:
                return keras.optimizers.get(identifier)
            except ValueError:
                raise UnknownName(
                    f"Unknown optimizer: {identifier!r}. {nearest(identifier, known)} Keras's own "
                    "are known too."
                ) from None
    return registry.get("optimizers", identifier, keras.optimizers.Optimizer)


def take_moments(new, old, variables):
    """Gives `new`, an optimizer built for `variables`, the state that `old` has of the same ones.

    What `old` did not train starts with moments of zero, and with its value as its average.
    """
    known = {variable.path: variable for variable in old.variables}
    for variable in new.variables:
        # A rate that is a number is a variable too, one that a schedule computes is none.
        if variable.path in known and not variable.path.endswith("learning_rate"):
            variable.assign(known[variable.path])
    for variable, average in zip(variables, _averages(new), strict=False):
        if average.path not in known:
            average.assign(ops.copy(variable))  # programs are given both, to keep


@contextlib.contextmanager
def averaged_weights(model):
    """Inside it the model has its optimizer's moving averages as weights, if it keeps them."""
    optimizer = getattr(model, "optimizer", None)
    averaging = getattr(optimizer, "use_ema", False) and int(optimizer.iterations) > 0
    weights = [ops.convert_to_numpy(w) for w in model.trainable_variables] if averaging else []
    if averaging:
        take_averages(model)
    try:
        yield model
    finally:
        for variable, weight in zip(model.trainable_variables, weights, strict=False):
            variable.assign(weight)


def take_averages(model):
    """Makes the moving averages that the optimizer keeps, if it does, the model's weights."""
    for variable, average in zip(
        model.trainable_variables, _averages(model.optimizer), strict=False
    ):
        variable.assign(ops.copy(average))  # the JAX trainer gives a weight's array away


def _averages(optimizer):
    # Keras's own SwapEMAWeights reads this attribute; there is no public one.
    return getattr(optimizer, "_model_variables_moving_average", None) or []
