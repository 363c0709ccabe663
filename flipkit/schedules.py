"""Learning rate as a function of samples seen."""

import math

import keras
from keras import ops

from flipkit import checks, registry
from flipkit.errors import ConfigurationError
from flipkit.registry import register


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate over samples; a subclass writes `rate`.

    Counting samples and not steps keeps a recipe's schedule right when its batch size changes. A
    `flipkit.Phase` binds its schedule to the samples of a step and of the phase; in plain `fit`, bind
    it yourself: `WarmupCosine(1e-3, warmup=5_000).bind(64, total=100_000)`.

    Args:
        batch_size: samples per step.
        total: samples in all.
        start: step at which the schedule begins.
    """

    def __init__(self, *, batch_size=None, total=None, start=0):
        super().__init__()
        self.batch_size, self.total, self.start = batch_size, total, start

    def rate(self, samples, total):
        """The learning rate, a float32 tensor, after `samples`, another, of `total`, a float."""
        raise NotImplementedError(f"{type(self).__name__} defines no rate(samples, total)")

    def check(self):
        """Raises ConfigurationError if the schedule doesn't fit into `total`."""

    def bind(self, batch_size, total, start=0) -> "Schedule":
        """A copy with its batch size, its total and its first step set."""
        bound = {"batch_size": batch_size, "total": total, "start": start}
        schedule = type(self).from_config({**self.get_config(), **bound})
        schedule.check()
        return schedule

    def __call__(self, step):
        if self.batch_size is None or self.total is None:
            raise ConfigurationError(
                f"{type(self).__name__} counts samples: set how many a step takes and how many "
                "there are, with .bind(batch_size, total)"
            )
        samples = (ops.cast(step, "float32") - self.start) * self.batch_size
        return self.rate(samples, float(self.total))  # 12.8 billion are no int32

    def get_config(self):
        return {"batch_size": self.batch_size, "total": self.total, "start": self.start}


@register
class WarmupCosine(Schedule):
    """Linear from 0 to `peak` over `warmup` samples, then half a cosine down to `floor` at the end.

    Args:
        peak: highest learning rate.
        warmup: samples.
        floor: learning rate at the end.
    """

    def __init__(self, peak, warmup=0, floor=0.0, **kwargs):
        super().__init__(**kwargs)
        checks.number(least=0, peak=peak, warmup=warmup, floor=floor)
        self.peak, self.warmup, self.floor = peak, warmup, floor

    @classmethod
    def example(cls):
        """One to check, for `flipkit.testing`."""
        return cls(1e-3, warmup=5_000)

    def check(self):
        if not 0 <= self.warmup < self.total:  # pyright: ignore[reportOperatorIssue]
            raise ConfigurationError(
                f"Expected a warm-up shorter than the phase. Received: warmup={self.warmup:,} of "
                f"{self.total:,} samples. Set the schedule's warmup too, or change the recipe's "
                "own argument, which both follow."
            )

    def rate(self, samples, total):
        warmup = float(self.warmup)
        rising = self.peak * samples / max(warmup, 1.0)
        progress = ops.clip((samples - warmup) / (total - warmup), 0.0, 1.0)
        wave = (1 + ops.cos(math.pi * progress)) / 2
        return ops.where(samples < warmup, rising, self.floor + (self.peak - self.floor) * wave)

    def get_config(self):
        own = {"peak": self.peak, "warmup": self.warmup, "floor": self.floor}
        return {**super().get_config(), **own}


@register
class Constant(Schedule):
    """`peak` throughout, after a linear warm-up over `warmup` samples."""

    def __init__(self, peak, warmup=0, **kwargs):
        super().__init__(**kwargs)
        checks.number(least=0, peak=peak, warmup=warmup)
        self.peak, self.warmup = peak, warmup

    @classmethod
    def example(cls):
        """One to check, for `flipkit.testing`."""
        return cls(1e-3)

    def rate(self, samples, total):
        rising = samples / float(self.warmup) if self.warmup else ops.ones_like(samples)
        return self.peak * ops.clip(rising, 0.0, 1.0)

    def get_config(self):
        return {**super().get_config(), "peak": self.peak, "warmup": self.warmup}


@register
class Stretch(Schedule):
    """A stretch of a longer schedule: of its `whole` samples those that come after the first `before`.

    So one curve runs on over several phases; `flipkit.mask_phases` makes them.

    Args:
        schedule: the longer one: a name, an object or its config.
        before: samples of it before the stretch begins.
        whole: samples that it has in all.
    """

    def __init__(self, schedule, before, whole, **kwargs):
        super().__init__(**kwargs)
        checks.number(least=0, before=before, whole=whole)
        self.schedule, self.before, self.whole = get(schedule), before, whole

    @property
    def peak(self):
        """The highest rate of the longer schedule."""
        return self.schedule.peak

    @property
    def warmup(self):
        """Samples of this stretch in which the longer schedule still warms up."""
        return max(0, self.schedule.warmup - self.before)

    def check(self):
        if not 0 <= self.before < self.before + self.total <= self.whole:
            raise ConfigurationError(
                f"Expected a stretch within its schedule of {self.whole:,} samples. Received: "
                f"{self.total:,} samples after the first {self.before:,}. Whoever changes a phase's "
                "pairs has to change the stretches of its schedule too."
            )
        self.schedule.bind(self.batch_size, self.whole)

    def rate(self, samples, total):
        return self.schedule.rate(samples + float(self.before), float(self.whole))

    def get_config(self):
        own = {"before": self.before, "whole": self.whole}
        return {**super().get_config(), **own, "schedule": registry.serialize(self.schedule)}


def get(identifier) -> Schedule:
    """The schedule that a name, object or config describes."""
    return registry.get("schedules", identifier, Schedule)
