"""Variants of a run to plan: another mask ratio, remat, micro-batch or batch of one phase."""

from typing import Any, NamedTuple

from flipkit.errors import ConfigurationError, nearest
from flipkit.layers.stack import (
    REMATS as REMATS,  # from the least to the most that is computed again
)
from flipkit.training.phase import model_settings


class Variant(NamedTuple):
    """What differs from the run; None is the run's own.

    Attributes:
        mask_ratio: share of the patches that is dropped.
        remat: one of `REMATS`, in every tower that has the argument.
        microbatch: pairs that pass the towers at a time; 0 is all at once.
        batch_size: pairs of a step.
    """

    mask_ratio: float | None = None
    remat: str | None = None
    microbatch: int | None = None
    batch_size: int | None = None


def apply(run, index: int, variant: Variant):
    """Returns the run with a variant of its phase `index`.

    Raises:
        ConfigurationError: the run's model has no such setting, or refuses the value.
    """
    values, phase = {}, run.phases[index]
    if variant.mask_ratio is not None:
        if not has_masks(run.model):
            raise ConfigurationError(
                f"A {type(run.model).__name__} drops no patches. Leave the mask ratios out. Received: "
                f"{variant.mask_ratio:g}"
            )
        values[f"phases.{index}.mask_ratio"] = variant.mask_ratio
    if variant.remat is not None:
        values |= {f"model.{role}.remat": _remat(run, role, variant.remat) for role in _roles(run)}
    if variant.microbatch is not None:
        values[f"phases.{index}.microbatch"] = variant.microbatch or None
    if variant.batch_size is not None:
        values[f"phases.{index}.pairs"] = max(phase.pairs, variant.batch_size)
        values[f"phases.{index}.batch_size"] = variant.batch_size
    return run.with_overrides(values) if values else run


def has_masks(model) -> bool:
    """Whether training can drop patches."""
    return hasattr(model, "mask_ratio") and bool(getattr(model.image, "grid", None))


def mask_ratio(run, index: int) -> float | None:
    """Returns the share of patches that phase `index` drops; None for a model without masks."""
    if not has_masks(run.model):
        return None
    told: Any = model_settings(run.phases, index).get("mask_ratio")
    return run.model.mask_ratio if told is None else told


def remat(run) -> str | None:
    """Returns what a run's towers compute again: one of `REMATS`, "mixed", or None if none can."""
    known = {_named(run.model.encoders()[role].remat) for role in _roles(run)}
    return known.pop() if len(known) == 1 else "mixed" if known else None


def stronger(run) -> list[str]:
    """Returns the remats to try when a run's own does not fit, the weakest one first."""
    own = remat(run)
    if own is None:
        return []
    offered = REMATS if _roles(run) and not _are_switches(run) else ("none", "block")
    return list(offered[offered.index(own) + 1 :] if own in offered else offered[1:])


def _roles(run):
    """The towers that have the argument."""
    return [role for role, tower in run.model.encoders().items() if hasattr(tower, "remat")]


def _are_switches(run):
    return any(isinstance(run.model.encoders()[role].remat, bool) for role in _roles(run))


def _named(value):
    return {True: "block", False: "none", None: "none"}.get(value, value)


def _remat(run, role, name):
    """The value of a tower's argument `remat` for one of `REMATS`."""
    if name not in REMATS:
        raise ConfigurationError(f"Unknown remat: {name!r}. {nearest(name, REMATS)}")
    tower = run.model.encoders()[role]
    if not isinstance(tower.remat, bool):
        return name
    if name == "dots":
        raise ConfigurationError(
            f"The {role} tower, a {type(tower).__name__}, can compute its blocks again or nothing: "
            "expected remat none or block. Received: 'dots'"
        )
    return name == "block"
