"""A check, how it ends, and what all components must do."""

import contextlib
import dataclasses
import functools
import json
import unittest
from collections.abc import Callable, Iterable

import keras
import numpy as np

from flipkit import registry
from flipkit.errors import ConfigurationError, nearest
from flipkit.testing.elsewhere import Elsewhere


class CheckFailed(AssertionError):
    """A component doesn't do what it must: what was expected, and what came."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a component must do."""

    name: str
    function: Callable[[], None]
    expected_failure: str | None = None  # why it fails on purpose
    slow: bool = False  # whether it takes seconds: it trains, or starts a process
    # Starts what a slow one waits for, in the background; for those who will run it a little later.
    begin: Callable[[], None] = dataclasses.field(default=lambda: None, compare=False)

    def __str__(self):
        return self.name

    def __call__(self):
        """Raises CheckFailed, or unittest.SkipTest, which pytest knows, for an expected failure."""
        try:
            self.function()
        except Exception as failure:
            if self.expected_failure is None:
                raise
            raise unittest.SkipTest(f"{self.expected_failure} ({failure})") from failure
        if self.expected_failure is not None:
            raise CheckFailed(f"{self.name} passes: take it out of expected_failures")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a check ended: "passed", "failed" or "expected failure"; and what it said."""

    check: str
    status: str
    message: str = ""
    error: Exception | None = dataclasses.field(default=None, compare=False, repr=False)


def run(checks: Iterable[Check]) -> list[Outcome]:
    """The outcome of every check, in their order."""
    outcomes = []
    for check in checks:
        try:
            check()
        except unittest.SkipTest as skipped:
            outcomes.append(Outcome(check.name, "expected failure", str(skipped)))
        except CheckFailed as failure:
            outcomes.append(Outcome(check.name, "failed", str(failure), failure))
        except Exception as problem:  # whatever a component raises is how its check ended
            said = f"it raised {type(problem).__name__}: {problem}".partition("\n")[0]
            outcomes.append(Outcome(check.name, "failed", said, problem))
        else:
            outcomes.append(Outcome(check.name, "passed"))
    return outcomes


def slow(check):
    """Marks a method of `Checks` that takes seconds."""
    check.slow = True
    return check


class Checks:
    """Methods without an underscore are checks, in the order they are written in, the slow ones last."""

    kind: type = object

    def __init__(self, make):
        self._maker = make

    def _make(self):
        return made_by(self._maker)

    def checks(self, expected_failures) -> list[Check]:
        """The list of them; what is expected to fail is what the component's class says, and this."""
        stated = getattr(sample_of(self._maker), "expected_failures", None)
        expected = {**(stated or {}), **(expected_failures or {})}
        owners = [vars(owner) for owner in reversed(type(self).__mro__[:-1])]
        names = [
            n for owner in owners for n in owner if n[0] != "_" and n not in ("kind", "checks")
        ]
        for name in expected.keys() - set(names):
            raise ConfigurationError(f"There is no check {name!r}. {nearest(name, names)}")
        known = [
            Check(name, method := getattr(self, name), expected.get(name), hasattr(method, "slow"))
            for name in names
            if self._asked(name)
        ]
        slow = [dataclasses.replace(c, begin=self._begin) for c in known if c.slow]
        return [c for c in known if not c.slow] + slow

    def _asked(self, name):
        """Whether a check is wanted: those that a clock decides are where a time is given."""
        return True

    def is_made_without_arguments(self):
        made = self._make()
        expect(isinstance(made, self.kind), f"a {self.kind.__name__}", type(made).__name__)

    def has_a_complete_config(self):
        """Run.json and `.keras` files hold nothing else of it."""
        made = self._make()
        before = config_of(made)
        told = "an equal config after from_config(get_config()), through JSON"
        try:
            with registry.without_tensorflow():
                again = type(made).from_config(json.loads(before))
        except Exception as problem:
            raise CheckFailed(f"Expected {told}. Received: {problem}") from problem
        after = config_of(again)
        expect(after == before, told, f"{after} of {before}")

    def is_known_to_keras(self):
        """Files name the class; Keras must find it."""
        owner = type(self._make())
        found = keras.saving.get_registered_object(keras.saving.get_registered_name(owner))
        told = 'a class under @keras.saving.register_keras_serializable(package="...")'
        expect(found is owner, told, f"{owner.__name__}, which keras.saving does not know")

    @slow
    def starts_no_backend_when_imported(self):
        """Flipkit places devices after the plugins are loaded."""
        told = (
            f"`import {module_of(self._make())}` to start no JAX backend: arrays, keys, layers belong "
            "in functions"
        )
        expect(not self._told("backend"), told, "a backend that runs")

    @functools.cached_property
    def _elsewhere(self):
        """The fresh process of this component, in which all looks that need one are taken."""
        return Elsewhere(module_of(self._make()))

    def _begin(self):
        with contextlib.suppress(Exception):  # what needs it raises it again
            self._elsewhere  # noqa: B018

    def _told(self, name):
        try:
            return self._elsewhere.tell(name)
        except RuntimeError as problem:
            told = f"Expected a fresh process to manage. Received: {problem}"
            raise CheckFailed(told) from problem


# What is checked


def made_by(make):
    """What `make.example()` makes where there is one, else `make()`."""
    with registry.without_tensorflow():  # Keras serialises what a layer is made with
        return getattr(make, "example", make)()


def sample_of(make):
    """One to look at before anything is checked; None if it can't be made, which a check tells."""
    try:
        return made_by(make)
    except Exception:  # is_made_without_arguments raises it again
        return None


def module_of(component):
    """The module of its class, by a name that another process can import."""
    module = type(component).__module__
    if module == "__main__":
        raise CheckFailed(
            "Expected a class in a module that another process can import. Received: one in __main__"
        )
    return module


# Expectations


def expect(held, expected, received):
    """Raises CheckFailed unless it `held`."""
    if not held:
        raise CheckFailed(f"Expected {expected}. Received: {received}")


def expect_equal(got, wanted, told):
    """Raises CheckFailed unless two arrays are equal to the last bit."""
    expect(np.array_equal(got, wanted), told, f"{short(got)} and {short(wanted)}")


def expect_close(got, wanted, told, tolerance=1e-5):
    """Raises CheckFailed unless they differ by `tolerance` at most, of the largest number above 1."""
    expect(got.shape == wanted.shape, told, f"shapes {got.shape} and {wanted.shape}")
    got, wanted = (np.asarray(array, "float64") for array in (got, wanted))
    worst = float(np.max(np.abs(got - wanted), initial=0.0))
    allowed = tolerance * max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    expect(worst <= allowed, told, f"a difference of {worst:.2g}")


def short(array):
    """The first numbers of an array, for a message."""
    return np.array2string(np.asarray(array).ravel()[:8], separator=", ")


def config_of(component):
    """A component's config as JSON."""
    with registry.without_tensorflow():
        config = registry.serialize(component.get_config())
    try:
        return json.dumps(config, sort_keys=True)
    except TypeError as problem:
        raise CheckFailed(f"Expected a config that JSON can hold. Received: {problem}") from problem
