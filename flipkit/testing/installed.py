"""Checks installed components: `flipkit plugins --check`."""

import contextlib
import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterable, Iterator

from flipkit import plugins
from flipkit.errors import ConfigurationError, FlipkitError, PluginError, UnknownName, nearest
from flipkit.testing.check import Check, Checks, Outcome, run
from flipkit.testing.datasets import check_dataset
from flipkit.testing.encoders import check_encoder
from flipkit.testing.maskers import check_masker
from flipkit.testing.models import check_model
from flipkit.testing.schedules import check_schedule
from flipkit.testing.tokenizers import check_tokenizer

CHECKS: dict[str, Callable[..., list[Check]]] = {
    "maskers": check_masker,
    "encoders": check_encoder,
    "datasets": check_dataset,
    "models": check_model,
    "schedules": check_schedule,
    "tokenizers": check_tokenizer,
}
HINT = "give its class a classmethod example() that returns a small one"
FIXES = {  # of checks that no component may fail on purpose
    "expected_failures": "Name existing checks in the expected_failures of {target}",
    "is_made_without_arguments": "Mend {target}, or " + HINT,
}
MEANT = 'Mend {target}, or say why it is meant so: expected_failures = {{"{check}": "..."}} in the class'


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of the checks of an installed component."""

    component: plugins.Component
    status: str  # "conforms", "fails", "broken" or "not checked"
    detail: str = ""
    outcomes: tuple[Outcome, ...] = ()

    def __str__(self):
        return f"{self.status}: {self.detail}" if self.detail else self.status

    @property
    def problems(self) -> list[plugins.Problem]:
        """A Problem for each failed check, except those that `plugins.problems()` returns."""
        c = self.component
        source = plugins.Source(c.distribution, c.version, c.entry_point)
        return [
            plugins.Problem(
                source,
                f"flipkit_{c.kind}",
                f"{c.name!r} fails {outcome.check}. {outcome.message}".rstrip("."),
                FIXES.get(outcome.check, MEANT).format(target=c.target, check=outcome.check),
                missing=False,
            )
            for outcome in self.outcomes
            if outcome.status == "failed" and not isinstance(outcome.error, PluginError)
        ]


def check_installed(
    *names: str, kinds: Iterable[str] = plugins.KINDS, started: Callable = lambda component: None
) -> Iterator[Verdict]:
    """Yields a verdict on each installed component, after the quick checks of the next one.

    Args:
        names: components or distributions; without names, all that are not flipkit's own.
        kinds: the kinds of component to check.
        started: called with each component before its checks run.

    Raises:
        UnknownName: no installed component or distribution has one of the names.
    """
    judged: dict = {}  # a component with several names is checked once
    begun: list = []  # the next one's quick checks run while this one's process works
    for component in chosen(plugins.listing(*kinds), names):
        started(component)
        begun.append((component, _begin(component, judged)))
        if len(begun) > 1:
            yield _end(*begun.pop(0))
    yield from (_end(*left) for left in begun)


def chosen(components: list[plugins.Component], names) -> list[plugins.Component]:
    """Returns the named components; for a distribution, or no name, those whose kind has checks."""
    if not names:
        own = plugins.BUILT_IN.entry_point
        return [c for c in components if c.entry_point != own and c.kind in CHECKS]
    called = [{c.name, f"{c.distribution}:{c.name}"} for c in components]
    # A broken plugin that offers no components is among the problems.
    known = {problem.source.distribution for problem in plugins.problems()}
    known = known.union(*called, (c.distribution for c in components))
    for name in names:
        if name not in known:
            left = {s: by for s, by in plugins.disabled().items() if s.distribution == name}
            left_out = "".join(f"\nPlugin {s} is left out by {by}." for s, by in left.items())
            short = [other for other in known if ":" not in other]
            hint = nearest(name, known, listed=short)
            raise UnknownName(f"Nothing installed is called {name!r}. {hint}{left_out}")
    return [
        c
        for c, own in zip(components, called, strict=True)
        if own & {*names} or (c.distribution in names and c.kind in CHECKS)
    ]


def _begin(component, judged):
    """Returns the verdict on a component, or a _Judgement that computes it later."""
    if component.kind not in CHECKS:
        return Verdict(component, "not checked", f"there are no checks of {component.kind}")
    status, _, why = component.status.partition(": ")
    if status == "broken":
        return Verdict(component, status, why)
    made = plugins.component(component.kind, f"{component.distribution}:{component.name}")
    # A partial is a size of its class. A large one may take hours to check.
    owner = made.func if isinstance(made, functools.partial) else made
    make = owner if hasattr(owner, "example") else made
    if make is not made:
        (own,) = run(CHECKS[component.kind](made)[:1])
        if own.status == "failed":
            return Verdict(component, "broken", own.message, (own,))
    if (component.kind, make) not in judged:
        judged[component.kind, make] = _Judgement(component, make)
    return judged[component.kind, make]


def _end(component, found) -> Verdict:
    if isinstance(found, _Judgement):
        found = found.verdict
    return dataclasses.replace(found, component=component)


class _Judgement:
    """Runs the quick checks of the component; `verdict` runs those that wait for a fresh process."""

    def __init__(self, component, make):
        self._component, self._outcomes, self._left, self._seconds = component, [], [], 0.0
        with self._timed():
            self._early = self._run_quick(make)

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Runs the remaining checks; returns the verdict."""
        with self._timed():
            found = self._early or self._judge()
        several = len(found.outcomes) > 1
        took = f" in {self._seconds:.0f} s" if several else ""
        return dataclasses.replace(found, detail=found.detail + took)

    def _run_quick(self, make) -> Verdict | None:
        """Runs the quick checks; returns the verdict, or None where slow checks remain."""
        has_example = hasattr(make, "example")
        try:
            inspect.signature(make.example if has_example else make).bind()
        except TypeError as error:
            return Verdict(self._component, "not checked", f"{error}; {HINT}")
        except ValueError:
            pass  # written in C, without a signature; the first check calls it
        try:
            checks = CHECKS[self._component.kind](make)
        except ConfigurationError as error:  # its expected_failures name an unknown check
            outcome = Outcome("expected_failures", "failed", str(error), error)
            return Verdict(self._component, "fails", "its expected_failures", (outcome,))
        for place, check in enumerate(checks):
            if check.slow:
                self._left = checks[place:]
                return None
            (outcome,) = run([check])
            # Whether only the checks of all components have run, none that uses it.
            unused = not any(o.check not in vars(Checks) for o in self._outcomes)
            refused = isinstance(outcome.error, FlipkitError)
            if refused and unused and not has_example:
                return Verdict(self._component, "not checked", f"{outcome.error}; {HINT}")
            self._outcomes.append(outcome)
            if check.name == "is_made_without_arguments":
                if outcome.status == "failed":
                    return Verdict(self._component, "broken", outcome.message, (outcome,))
                checks[-1].begin()
        return None

    def _judge(self) -> Verdict:
        outcomes = (*self._outcomes, *run(self._left))
        ended = [outcome.status for outcome in outcomes]
        if failed := ended.count("failed"):
            detail = f"{failed} of {len(ended)} checks"
            return Verdict(self._component, "fails", detail, outcomes)
        detail = f"{ended.count('passed')} checks"
        if expected := ended.count("expected failure"):
            detail += f", {expected} more {'fails' if expected == 1 else 'fail'} on purpose,"
        return Verdict(self._component, "conforms", detail, outcomes)

    @contextlib.contextmanager
    def _timed(self):
        start = time.monotonic()
        yield
        self._seconds += time.monotonic() - start
