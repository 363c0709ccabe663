"""Runs for equal seconds: how far apart they are, and whether they will end together."""

import statistics

from flipkit.errors import FlipkitError
from flipkit.records import journal
from flipkit.study.results import Variant, _flops

TOLERANCE = 0.05  # runs for equal seconds of which one is so far from their mean are trained again
LOOK = 0.25  # of the steps, after which newly sized runs are stopped if they won't end together


class OffPace(FlipkitError):
    """Ends runs for equal seconds that won't end together; `seconds` {variant: what it would take}."""

    def __init__(self, seconds):
        super().__init__("The runs won't end together.")
        self.seconds = seconds


class Pace:
    """What runs that were sized for equal seconds will take, as far as a part of each shows.

    Args:
        expected: seconds of each, as they were sized.

    Attributes:
        seconds: {variant: of its whole training}, of those that were looked at. The rest of it goes
            at the mean of two paces, the one that it was sized with and the one that it has shown,
            and grows with the FLOPs.
    """

    def __init__(self, expected):
        self.expected = expected
        self.seconds: dict[Variant, float] = {}

    def look(self, variant, plans, folder):
        """Notes the pace of a variant's run, if this is the first look at it.

        Args:
            folder: the run's workdir.
            plans: {variant: plan} of all that are trained.

        Raises:
            OffPace: the paces of all are known, and are `uneven`.
        """
        if variant not in self.seconds:
            row, plan = journal.read_metrics(folder)[-1], plans[variant]
            share = _flops(row["samples"], plan) / plan["flops"]
            whole = (row["seconds"] / share + self.expected) / 2
            self.seconds[variant] = row["seconds"] + (1 - share) * whole
        if len(self.seconds) == len(plans) and uneven(self.seconds):
            raise OffPace(self.seconds)


def uneven(seconds: dict[Variant, float]) -> dict[Variant, float]:
    """{variant: what its pairs are to be multiplied with, so that all take the mean}.

    Empty if each is within TOLERANCE of the mean.
    """
    if not seconds:
        return {}
    mean = statistics.fmean(seconds.values())
    if all(abs(spent / mean - 1) <= TOLERANCE for spent in seconds.values()):
        return {}
    return {variant: mean / spent for variant, spent in seconds.items()}
