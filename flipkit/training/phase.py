"""Phases: stretches of a run, each under one compiled program."""

import itertools
import math

from flipkit import schedules
from flipkit.checks import Size, as_size
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.maskers import kept_count
from flipkit.paths import checked_patterns
from flipkit.registry import Configurable, register, serialize
from flipkit.schedules import Stretch

# Settings of the model; None keeps the value of the phase before.
PHASE_SETTINGS = ("mask_ratio", "text_mask_ratio", "frozen", "image_size")


@register
class Phase(Configurable):
    """A stretch of a run under one program.

    Args:
        pairs: image-text pairs to train on; the phase uses whole batches of them.
        batch_size: pairs per step.
        schedule: `flipkit.Schedule` over this phase's samples; None keeps the optimizer's own rate.
        mask_ratio, text_mask_ratio: shares dropped in this phase; None keeps the phase before's.
        image_size: pixels of this phase's pictures, as in `flipkit.FLIP`; None keeps the phase before's, so
            that a phase at the tower's own size has to set that size.
        frozen: patterns of variables that this phase does not train, as in `flipkit.FLIP`; None takes
            those of the phase before, [] trains everything.
        microbatch: pairs that pass the towers at a time; the gradient is that of the whole batch, for one
            more forward pass (`flipkit.models.caching`). It divides `batch_size`. None is all at once.
        optimizer: "kept" goes on with the moments of the phase before, "fresh" starts anew.
    """

    def __init__(
        self,
        pairs,
        batch_size,
        schedule=None,
        *,
        mask_ratio=None,
        text_mask_ratio=None,
        image_size: Size | None = None,
        frozen=None,
        microbatch=None,
        optimizer="kept",
    ):
        self.pairs, self.batch_size = (
            whole_number("pairs", pairs),
            whole_number("batch_size", batch_size),
        )
        self.schedule = schedules.get(schedule)
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.image_size = None if image_size is None else as_size(image_size)
        self.frozen = None if frozen is None else checked_patterns("frozen", frozen)
        self.microbatch = None if microbatch is None else whole_number("microbatch", microbatch)
        self.optimizer = optimizer
        if self.batch_size % (self.microbatch or 1):
            raise ConfigurationError(
                "Expected a batch of whole micro-batches. Received: "
                f"batch_size={self.batch_size:,}, microbatch={self.microbatch:,}"
            )
        if self.pairs < self.batch_size:
            raise ConfigurationError(
                f"A phase needs at least one batch. Received: pairs={pairs:,}, {batch_size=:,}"
            )
        for name in ("mask_ratio", "text_mask_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not (isinstance(ratio, (int, float)) and 0 <= ratio < 1):
                raise ConfigurationError(f"Expected a share in [0, 1). Received: {name}={ratio!r}")
        if optimizer not in ("kept", "fresh"):
            raise ConfigurationError(f"Expected 'kept' or 'fresh'. Received: {optimizer=}")

    @property
    def steps(self) -> int:
        """Steps of this phase."""
        return self.pairs // self.batch_size

    @property
    def samples(self) -> int:
        """Pairs that this phase uses: whole batches."""
        return self.steps * self.batch_size


CURVES = {  # the share of the way from start to end that a ratio has gone, at a share of the run
    "constant": lambda share: 0.0,
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}


def mask_phases(
    ratios,
    pairs,
    batch_size,
    schedule=None,
    *,
    start=0.75,
    end=0.0,
    buckets=4,
    name="mask_ratio",
    tokens=None,
    **settings,
) -> list[Phase]:
    """Phases in which the mask ratio changes while one learning-rate curve runs on over all of them.

        flipkit.mask_phases("cosine", 12_800_000_000, 65_536, schedule, start=0.75, end=0.0, buckets=4)

    Each phase is one compiled program; neighbours that keep equally many tokens become one phase.

    Args:
        ratios: "constant" (`start` throughout), "linear" or "cosine" from `start`, the ratio of the first
            bucket, to `end`, that of the last; or the steps themselves, a list of ratios for equal
            shares of the pairs: `[0.5] * 9 + [0.0]` leaves the last tenth unmasked.
        pairs, batch_size: of all phases together; each has whole batches.
        schedule: learning rate over all of them, as in `flipkit.Phase`.
        start, end: ratios, in [0, 1).
        buckets: how many ratios a curve is cut into.
        name: which ratio changes: "mask_ratio" or "text_mask_ratio".
        tokens: how many a picture or a text has; with None, only equal ratios keep equally many.
        settings: further arguments of `flipkit.Phase`, for all phases.
    """
    if isinstance(ratios, str):
        if ratios not in CURVES:
            raise UnknownName(f"Unknown ratios: {ratios!r}. {nearest(ratios, CURVES)}")
        last = max(whole_number("buckets", buckets) - 1, 1)
        shares = [CURVES[ratios](i / last) for i in range(buckets)]
        ratios = [start + (end - start) * share for share in shares]
    if name not in ("mask_ratio", "text_mask_ratio"):
        hint = nearest(name, ("mask_ratio", "text_mask_ratio"))
        raise UnknownName(f"Unknown ratio: {name!r}. {hint}")
    schedule, batch_size = schedules.get(schedule), whole_number("batch_size", batch_size)
    steps = whole_number("pairs", pairs) // batch_size
    if not 0 < len(ratios) <= steps:
        raise ConfigurationError(
            f"Expected from 1 to {steps:,} ratios, one a step at most. Received: {len(ratios)} ratios "
            f"for {pairs:,} pairs in batches of {batch_size:,}"
        )
    kept = [kept_count(tokens, ratio) if tokens else ratio for ratio in ratios]
    firsts = [i for i in range(len(kept)) if i == 0 or kept[i] != kept[i - 1]]
    bounds = [steps * i // len(kept) * batch_size for i in (*firsts, len(kept))]  # in samples
    phases = []
    for i, (before, after) in zip(firsts, itertools.pairwise(bounds), strict=True):
        whole = (before, after) == (0, bounds[-1])
        rate = schedule if whole or schedule is None else Stretch(schedule, before, bounds[-1])
        phases.append(Phase(after - before, batch_size, rate, **{name: ratios[i]}, **settings))
    return phases


def whole_number(name, value, least=1) -> int:
    """`value` as an int, a float such as 1e6 too; raises unless it is whole and at least `least`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value) or value < least:
        raise ConfigurationError(
            f"Expected a whole number of at least {least}. Received: {name}={value!r}"
        )
    return int(value)


def model_settings(phases, index) -> dict[str, object]:
    """The model's settings in phase `index`, {name: setting}: the last phase up to it that sets one."""
    given = [(name, getattr(p, name)) for p in phases[: index + 1] for name in PHASE_SETTINGS]
    return {name: setting for name, setting in given if setting is not None}


def optimizer_steps(phases, index) -> int:
    """The steps that the optimizer of phase `index` has taken when the phase begins.

    Counted from the description: a run resumed within the phase has no optimizer from before.
    """
    steps = 0
    for before, phase in itertools.pairwise(phases[: index + 1]):
        steps = steps + before.steps if phase.optimizer == "kept" else 0
    return steps


def compile_phase(run, index):
    """Gives a run's model the settings of phase `index` and compiles it with the phase's optimizer.

    Args:
        run: a `flipkit.Run` whose objects were made for training, or for planning.

    Returns:
        The optimizer. It is not built: it has no moments yet.
    """
    phase = run.phases[index]
    for name, setting in model_settings(run.phases, index).items():
        setattr(run.model, name, setting)
    config = run.optimizer.get_config()
    if phase.schedule is not None:
        start = optimizer_steps(run.phases, index)
        config["learning_rate"] = phase.schedule.bind(phase.batch_size, phase.samples, start)
    optimizer = type(run.optimizer).from_config(serialize(config))
    run.model.compile(optimizer, loss=run.loss, microbatch=phase.microbatch)
    return optimizer
