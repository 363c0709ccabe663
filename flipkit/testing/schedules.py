"""The checks of a schedule."""

import jax  # to compile the schedule: Keras compiles in `fit` alone
import numpy as np

from flipkit.schedules import Schedule
from flipkit.testing.check import Check, Checks, expect, short


def check_schedule(make, *, total=100_000, batch_size=100, expected_failures=None) -> list[Check]:
    """Returns the checks of a schedule over `total` samples."""
    return _ScheduleChecks(make, total, batch_size).checks(expected_failures)


class _ScheduleChecks(Checks):
    kind = Schedule

    def __init__(self, make, total, batch_size):
        super().__init__(make)
        self._total, self._batch = total, batch_size

    def is_a_rate_everywhere(self):
        bound = self._make().bind(self._batch, self._total)
        last = self._total // self._batch
        rates = np.array([float(bound(step)) for step in np.linspace(0, last, 23).astype(int)])
        expect(bool(np.isfinite(rates).all()), "a finite rate at every step", short(rates))
        expect(bool((rates >= 0).all()), "no rate below 0", rates.min())
        expect(bool(rates.any()), "a rate above 0 somewhere", "0 throughout")

    def counts_samples(self):
        """The rate after n samples is the same at any batch size."""
        places = [(self._total // 10) * i for i in range(11)]
        rates = [
            [float(self._make().bind(batch, self._total)(place // batch)) for place in places]
            for batch in (self._batch, self._batch // 2)
        ]
        expected = "the same rates over samples at half the batch size, to 1e-5 of the highest"
        worst = np.abs(np.subtract(rates[0], rates[1])).max() / max(np.max(rates), 1e-30)
        expect(worst <= 1e-5, expected, f"a difference of {worst:.2g}")

    def begins_where_it_is_told(self):
        early = self._make().bind(self._batch, self._total)
        late = self._make().bind(self._batch, self._total, start=50)
        expected = "the same rates 50 steps later with start=50"
        pairs = [(float(early(step)), float(late(step + 50))) for step in (0, 7, 100)]
        expect(all(np.isclose(a, b, rtol=1e-6) for a, b in pairs), expected, pairs)

    def compiles_to_the_same(self):
        bound = self._make().bind(self._batch, self._total)
        step = self._total // self._batch // 3
        compiled, eager = float(jax.jit(bound)(step)), float(bound(step))
        expect(np.isclose(compiled, eager, rtol=1e-5), f"{eager} compiled too", compiled)
