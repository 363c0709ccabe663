"""Predicts the seconds of runs for equal seconds, and detects runs that differ too much."""

import statistics

from flipkit.errors import FlipkitError
from flipkit.records import journal
from flipkit.study.results import Variant, _flops

TOLERANCE = 0.05  # runs for equal seconds are trained again if one is further from their mean
LOOK = 0.25  # of the steps, after which new runs are stopped if they won't end together


class OffPace(FlipkitError):
    """Ends runs for equal seconds that won't end together; `seconds` is {variant: predicted seconds}."""

    def __init__(self, seconds):
        super().__init__("The runs won't end together.")
        self.seconds = seconds


class Pace:
    """Predicts the seconds of runs for equal seconds from the first part of each.

    Args:
        expected: the seconds that each run was sized for.

    Attributes:
        seconds: {variant: predicted seconds of its training}, of those that `look` has measured. The
            prediction for the remaining FLOPs uses the mean of the expected and the measured pace.
    """

    def __init__(self, expected):
        self.expected = expected
        self.seconds: dict[Variant, float] = {}

    def look(self, variant, plans, folder):
        """Measures the pace of a variant's run at the first call for it.

        Args:
            folder: the run's workdir.
            plans: {variant: plan} of all runs.

        Raises:
            OffPace: all runs are measured, and their seconds are `uneven`.
        """
        if variant not in self.seconds:
            row, plan = journal.read_metrics(folder)[-1], plans[variant]
            share = _flops(row["samples"], plan) / plan["flops"]
            whole = (row["seconds"] / share + self.expected) / 2
            self.seconds[variant] = row["seconds"] + (1 - share) * whole
        if len(self.seconds) == len(plans) and uneven(self.seconds):
            raise OffPace(self.seconds)


def uneven(seconds: dict[Variant, float]) -> dict[Variant, float]:
    """Returns {variant: factor of its pairs}, with which all runs take the mean of the seconds.

    The dict is empty if each is within TOLERANCE of the mean.
    """
    if not seconds:
        return {}
    mean = statistics.fmean(seconds.values())
    if all(abs(spent / mean - 1) <= TOLERANCE for spent in seconds.values()):
        return {}
    return {variant: mean / spent for variant, spent in seconds.items()}
