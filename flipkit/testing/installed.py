"""What is installed put through its checks: `python -m flipkit.plugins --check`."""

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
from flipkit.testing.schedules import check_schedule
from flipkit.testing.tokenizers import check_tokenizer

CHECKS: dict[str, Callable[..., list[Check]]] = {
    "maskers": check_masker,
    "encoders": check_encoder,
    "datasets": check_dataset,
    "schedules": check_schedule,
    "tokenizers": check_tokenizer,
}
HINT = "give its class a classmethod example() that makes a small one"
FIXES = {  # of what may not be meant so
    "expected_failures": "Let expected_failures of {target} name checks that there are",
    "is_made_without_arguments": "Mend {target}, or " + HINT,
}
MEANT = 'Mend {target}, or say why it is meant so: expected_failures = {{"{check}": "..."}} in the class'


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How an installed component does."""

    component: plugins.Component
    status: str  # "conforms", "fails", "broken" or "not checked"
    detail: str = ""
    outcomes: tuple[Outcome, ...] = ()

    def __str__(self):
        return f"{self.status}: {self.detail}" if self.detail else self.status

    @property
    def problems(self) -> list[plugins.Problem]:
        """A Problem for each check that failed, but for those of `plugins.problems()`."""
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
    """The verdicts on installed components, each as soon as it is known.

    Args:
        names: components or distributions; without any, all that isn't flipkit's own.
        kinds: those of which it is asked.
        started: told each component before its checks run.

    Raises:
        UnknownName: nothing installed has one of the names.
    """
    known: dict = {}  # what serves several names is checked once
    for component in chosen(plugins.listing(*kinds), names):
        started(component)
        yield _verdict(component, known)


def chosen(components: list[plugins.Component], names) -> list[plugins.Component]:
    """Those that the names mean; a distribution, or no name, means what there are checks of."""
    if not names:
        own = plugins.BUILT_IN.entry_point
        return [c for c in components if c.entry_point != own and c.kind in CHECKS]
    called = [{c.name, f"{c.distribution}:{c.name}"} for c in components]
    # A plugin that offers nothing, since it is broken, is among the problems.
    known = {problem.source.distribution for problem in plugins.problems()}
    known = known.union(*called, (c.distribution for c in components))
    for name in names:
        if name not in known:
            left = {s: by for s, by in plugins.disabled().items() if s.distribution == name}
            told = "".join(f"\nPlugin {s} is left out by {by}." for s, by in left.items())
            short = [other for other in known if ":" not in other]
            hint = nearest(name, known, listed=short)
            raise UnknownName(f"Nothing installed is called {name!r}. {hint}{told}")
    return [
        c
        for c, own in zip(components, called, strict=True)
        if own & {*names} or (c.distribution in names and c.kind in CHECKS)
    ]


def _verdict(component, known) -> Verdict:
    if component.kind not in CHECKS:
        return Verdict(component, "not checked", f"there are no checks of {component.kind}")
    status, _, why = component.status.partition(": ")
    if status == "broken":
        return Verdict(component, status, why)
    made = plugins.component(component.kind, f"{component.distribution}:{component.name}")
    # A partial stands for a size of its class, perhaps one that takes hours to check.
    owner = made.func if isinstance(made, functools.partial) else made
    make = owner if hasattr(owner, "example") else made
    if make is not made:
        (own,) = run(CHECKS[component.kind](made)[:1])
        if own.status == "failed":
            return Verdict(component, "broken", own.message, (own,))
    if (component.kind, make) not in known:
        start = time.monotonic()
        verdict = _judged(component, make)
        took = f" in {time.monotonic() - start:.0f} s" if len(verdict.outcomes) > 1 else ""
        known[component.kind, make] = dataclasses.replace(verdict, detail=verdict.detail + took)
    return dataclasses.replace(known[component.kind, make], component=component)


def _judged(component, make) -> Verdict:
    """The verdict on what `make` makes."""
    has_example = hasattr(make, "example")
    try:
        inspect.signature(make.example if has_example else make).bind()
    except TypeError as error:
        return Verdict(component, "not checked", f"{error}; {HINT}")
    except ValueError:
        pass  # of something written in C, of which the first check tells
    try:
        checks = CHECKS[component.kind](make)
    except ConfigurationError as error:  # its class expects a check to fail that there isn't
        outcome = Outcome("expected_failures", "failed", str(error), error)
        return Verdict(component, "fails", "its expected_failures", (outcome,))
    outcomes = []
    for check in checks:
        (outcome,) = run([check])
        # Whether it is the first time that anything is done with it.
        unused = not any(o.check not in vars(Checks) for o in outcomes)
        refused = isinstance(outcome.error, FlipkitError)
        if refused and unused and not has_example:
            return Verdict(component, "not checked", f"{outcome.error}; {HINT}")
        outcomes.append(outcome)
        if check.name == "is_made_without_arguments":
            if outcome.status == "failed":
                return Verdict(component, "broken", outcome.message, (outcome,))
            checks[-1].begin()
    ended = [outcome.status for outcome in outcomes]
    if failed := ended.count("failed"):
        return Verdict(component, "fails", f"{failed} of {len(ended)} checks", tuple(outcomes))
    detail = f"{ended.count('passed')} checks"
    if expected := ended.count("expected failure"):
        detail += f", {expected} more {'fails' if expected == 1 else 'fail'} on purpose,"
    return Verdict(component, "conforms", detail, tuple(outcomes))
