"""Warmup, stable, decay: a learning rate that stays up until shortly before the end, and then falls."""

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with

SHAPES = ("sqrt", "linear")


@keras.saving.register_keras_serializable(package="flipkit_wsd_schedule")
class WarmupStableDecay(flipkit.Schedule):
    """Linear from 0 to `peak` over `warmup` samples, `peak`, then down to `floor` over the last share.

    MiniCPM (Hu et al., arXiv 2404.06395) calls it so; the shapes of the fall are those of Haegele et al.
    (arXiv 2405.18392). Unlike a cosine it does not depend on the length of the run until it falls, so that
    a run can be made longer without having been wrong before.

    Args:
        peak: highest learning rate.
        warmup: samples.
        decay: share of all samples over which the rate falls: 0.1 is enough in the first paper, the
            second mostly takes 0.2.
        shape: "sqrt" falls as 1 - sqrt(t) with t from 0 to 1, which the second paper finds better, and
            "linear" as 1 - t.
        floor: learning rate at the end.
    """

    def __init__(self, peak=1e-3, warmup=0, decay=0.2, *, shape="sqrt", floor=0.0, **kwargs):
        super().__init__(**kwargs)
        if shape not in SHAPES:
            raise flipkit.ConfigurationError(f"Expected a shape of {SHAPES}. Received: {shape!r}")
        if not 0 < decay <= 1:
            raise flipkit.ConfigurationError(f"Expected a share in (0, 1]. Received: {decay=}")
        self.peak, self.warmup, self.decay = peak, warmup, decay
        self.shape, self.floor = shape, floor

    def check(self):
        falling = self.decay * self.total  # pyright: ignore[reportOperatorIssue]
        if not 0 <= self.warmup <= self.total - falling:
            raise flipkit.ConfigurationError(
                "Expected a warm-up that ends before the decay begins. Received: "
                f"warmup={self.warmup:,} and decay={self.decay:g}, which is {falling:,.0f}, of "
                f"{self.total:,} samples"
            )

    def rate(self, samples, total):
        rising = samples / max(float(self.warmup), 1.0)
        fallen = ops.clip((samples - (1 - self.decay) * total) / (self.decay * total), 0.0, 1.0)
        left = 1 - (ops.sqrt(fallen) if self.shape == "sqrt" else fallen)
        stable = self.floor + (self.peak - self.floor) * left
        return ops.where(samples < self.warmup, self.peak * rising, stable)

    def get_config(self):
        names = ("peak", "warmup", "decay", "shape", "floor")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@flipkit.hookimpl
def flipkit_schedules():
    """The name in recipes: `phases.0.schedule=wsd`."""
    return {"wsd": WarmupStableDecay}
