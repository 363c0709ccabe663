"""`Variant`, the settings that a study compares, and `Result`, a finished run of one."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable

from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.records import messages


@dataclasses.dataclass(frozen=True)
class Variant:
    """The settings of a variant, beside those that all variants share, in any order."""

    settings: tuple[tuple[str, str], ...]

    def __post_init__(self):
        object.__setattr__(self, "settings", tuple(sorted(self.settings)))

    @property
    def label(self) -> str:
        """The settings with the last part of their paths: `masker=grid, mask_ratio=0.5`."""
        return ", ".join(f"{name.rsplit('.')[-1]}={value}" for name, value in self.settings)

    @property
    def folder(self) -> str:
        """The settings as the name of a folder."""
        text = ",".join(f"{name}={value}" for name, value in self.settings)
        return re.sub(r"[^\w.,=+-]+", "_", text) or "as-it-is"


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run of a study, a line of its `results.jsonl`.

    Attributes:
        settings: those of the variant.
        seed: that of the run.
        pairs: the number of pairs that it trained on.
        image_tokens: tokens in the image tower in the first phase, or None.
        flops: of training, counted from the traced program (`flipkit.plan`).
        seconds: of training, without evaluations and compilation.
        initial_weights: the digest of the weights before training.
        evaluations: one dict for each evaluation, such as at the end of a phase: the `phase`, the
            `samples`, `seconds` and `flops` spent until then, the training `loss` and the metrics. None
            stands for a number that is not finite.
        versions: of flipkit, Keras, JAX and the plugins.
    """

    settings: dict[str, str]
    seed: int
    pairs: int
    image_tokens: int | None
    flops: float
    seconds: float
    initial_weights: str
    evaluations: list[dict]
    versions: dict[str, str]

    @property
    def variant(self) -> Variant:
        """The variant of the run."""
        return Variant(tuple(self.settings.items()))

    @property
    def diverged(self) -> bool:
        """Whether a number of the last evaluation, or an embedding in it, was not finite."""
        final = self.evaluations[-1] if self.evaluations else {}
        bad = (n for n, v in final.items() if n.endswith("/non_finite") and v)
        return None in final.values() or any(bad)

    def value(self, metric: str) -> float:
        """Returns the metric at the end of training."""
        final = self.evaluations[-1] if self.evaluations else {}
        if metric not in final:
            known = [name for name in final if "/" in name]
            raise UnknownName(f"No evaluation has {metric!r}. {nearest(metric, known)}")
        return final[metric]

    def before_last_phase(self, metric: str) -> float | None:
        """Returns the metric before the last phase, such as unmasked tuning; None for a single phase."""
        last = max(evaluation["phase"] for evaluation in self.evaluations)
        before = [e[metric] for e in self.evaluations if e["phase"] < last]
        return before[-1] if before else None


def variants(values: dict[str, list[str]], also: Iterable[dict[str, str]] = ()) -> list[Variant]:
    """Returns a variant for every combination of the values, and the further ones.

    Args:
        values: {name of a setting: its values}.
        also: settings of further variants.
    """
    product = [] if not values else itertools.product(*values.values())
    found = [Variant(tuple(zip(values, chosen, strict=True))) for chosen in product]
    found += [Variant(tuple(settings.items())) for settings in also]
    return list(dict.fromkeys(found))


def summary(result: Result) -> str:
    """Returns a line with the metrics and seconds of a finished run."""
    final = messages.evaluations(result.evaluations[-1]) if result.evaluations else {}
    found = [f"{n} {messages.shown(n, v)}" for n, v in list(final.items())[:3] if v is not None]
    line = f"{', '.join(found) or 'no evaluation'}; {result.seconds:,.1f} s of training."
    return f"DIVERGED. {line}" if result.diverged else line


def _evaluation(row, plan):
    spent = {name: row[name] for name in ("phase", "samples", "seconds", "loss")}
    found = spent | {"flops": _flops(row["samples"], plan)} | messages.evaluations(row)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _flops(samples, plan):
    """Returns the FLOPs of training on the first `samples` samples of a plan."""
    flops, left = 0.0, samples
    for phase in plan["phases"]:
        done = min(left, phase["samples"])
        flops += phase["flops"] * done / phase["samples"]
        left -= done
    return flops


def _versions(run):
    record = run.record()
    return {**record["versions"], **record["plugins"]}


def check_metric(run, metric: str):
    """Raises ConfigurationError for a metric that no evaluator of the run computes."""
    if metric.partition("/")[0] not in run.evaluators:
        known = [f"{name}/..." for name in run.evaluators]
        hint = nearest(metric, known) if known else "The recipe has no evaluators."
        raise ConfigurationError(
            f"Expected metric=EVALUATOR/NUMBER, such as zero_shot/top1. Received: {metric!r}. {hint}"
        )
