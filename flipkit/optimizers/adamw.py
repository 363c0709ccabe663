"""AdamW as the official FLIP computes it, with groups of variables chosen by path."""

import keras
from keras import ops

from flipkit import checks, keras_inside
from flipkit.optimizers.lars import check_rate
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
        frozen: paths of variables that exist but are not trained: a pattern may match only one of these.
            `flipkit.FLIP.compile` sets them.
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
        check_rate(learning_rate)
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
        i = keras_inside.index_of(self, variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._factors[i]
        gradient = ops.cast(gradient, variable.dtype)
        if keras.backend.backend() == "tensorflow":
            # A gather's gradient comes in slices, some rows more than once: squares need their sums.
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
