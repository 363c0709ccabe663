"""`Check`, its `Outcome`, and the checks that all components share."""

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
    """A component fails a check; the message holds what was expected and what was received."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A named function that raises if a component lacks a required behaviour."""

    name: str
    function: Callable[[], None]
    expected_failure: str | None = None  # the reason why it fails on purpose
    slow: bool = False  # whether it takes seconds, because it trains or starts a process
    # Starts in the background the process that a slow check waits for. The caller runs the check later.
    begin: Callable[[], None] = dataclasses.field(default=lambda: None, compare=False)

    def __str__(self):
        return self.name

    def __call__(self):
        """Raises CheckFailed; for an expected failure unittest.SkipTest, which pytest reports as a skip."""
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
    """The status of a check, "passed", "failed" or "expected failure", and its message."""

    check: str
    status: str
    message: str = ""
    error: Exception | None = dataclasses.field(default=None, compare=False, repr=False)


def run(checks: Iterable[Check]) -> list[Outcome]:
    """Runs the checks; returns their outcomes in the same order."""
    outcomes = []
    for check in checks:
        try:
            check()
        except unittest.SkipTest as skipped:
            outcomes.append(Outcome(check.name, "expected failure", str(skipped)))
        except CheckFailed as failure:
            outcomes.append(Outcome(check.name, "failed", str(failure), failure))
        except Exception as problem:  # a component may raise anything
            message = f"it raised {type(problem).__name__}: {problem}".partition("\n")[0]
            outcomes.append(Outcome(check.name, "failed", message, problem))
        else:
            outcomes.append(Outcome(check.name, "passed"))
    return outcomes


def slow(check):
    """Marks a method of `Checks` that takes seconds."""
    check.slow = True
    return check


class Checks:
    """Each method without an underscore is a check. They run in the order of the source, slow ones last."""

    kind: type = object

    def __init__(self, make):
        self._maker = make

    def _make(self):
        return made_by(self._maker)

    def checks(self, expected_failures) -> list[Check]:
        """Returns the checks. `expected_failures` extends the attribute of the component's class."""
        declared = getattr(sample_of(self._maker), "expected_failures", None)
        expected = {**(declared or {}), **(expected_failures or {})}
        owners = [vars(owner) for owner in reversed(type(self).__mro__[:-1])]
        names = [
            n for owner in owners for n in owner if n[0] != "_" and n not in ("kind", "checks")
        ]
        for name in expected.keys() - set(names):
            raise ConfigurationError(f"There is no check {name!r}. {nearest(name, names)}")
        found = [
            Check(name, method := getattr(self, name), expected.get(name), hasattr(method, "slow"))
            for name in names
            if self._included(name)
        ]
        slow = [dataclasses.replace(c, begin=self._begin) for c in found if c.slow]
        return [c for c in found if not c.slow] + slow

    def _included(self, name):
        """Whether to include a check. A subclass leaves out a timed check without a time limit."""
        return True

    def is_made_without_arguments(self):
        made = self._make()
        expect(isinstance(made, self.kind), f"a {self.kind.__name__}", type(made).__name__)

    def has_a_complete_config(self):
        """`run.json` and `.keras` files store the config and nothing else of a component."""
        made = self._make()
        before = config_of(made)
        expected = "an equal config after from_config(get_config()), through JSON"
        try:
            with registry.without_tensorflow():
                again = type(made).from_config(json.loads(before))
        except Exception as problem:
            raise CheckFailed(f"Expected {expected}. Received: {problem}") from problem
        after = config_of(again)
        expect(after == before, expected, f"{after} of {before}")

    def is_known_to_keras(self):
        """Files store the name of the class; Keras must find the class by it."""
        owner = type(self._make())
        found = keras.saving.get_registered_object(keras.saving.get_registered_name(owner))
        expected = 'a class under @keras.saving.register_keras_serializable(package="...")'
        expect(
            found is owner, expected, f"{owner.__name__}, which is not registered in keras.saving"
        )

    @slow
    def starts_no_backend_when_imported(self):
        """Flipkit chooses the devices after it has imported the plugins."""
        expected = (
            f"`import {module_of(self._make())}` to start no JAX backend: arrays, keys, layers belong "
            "in functions"
        )
        expect(not self._result("backend"), expected, "a backend that runs")

    @functools.cached_property
    def _elsewhere(self):
        """The fresh process of this component. All checks that need one share it."""
        return Elsewhere(module_of(self._make()))

    def _begin(self):
        with contextlib.suppress(Exception):  # the check that needs the process raises it again
            self._elsewhere  # noqa: B018

    def _result(self, name):
        try:
            return self._elsewhere.result(name)
        except RuntimeError as problem:
            message = f"Expected no error in a fresh process. Received: {problem}"
            raise CheckFailed(message) from problem


# Components under test


def made_by(make):
    """Returns `make.example()` if `make` has that method, else `make()`."""
    with registry.without_tensorflow():  # Keras serialises the arguments of a layer
        return getattr(make, "example", make)()


def sample_of(make):
    """Returns a component to inspect before the checks; None if `make` raises, which a check reports."""
    try:
        return made_by(make)
    except Exception:  # is_made_without_arguments raises it again
        return None


def module_of(component):
    """Returns the name of the module of its class, which another process can import."""
    module = type(component).__module__
    if module == "__main__":
        raise CheckFailed(
            "Expected a class in a module that another process can import. Received: one in __main__"
        )
    return module


# Expectations


def expect(held, expected, received):
    """Raises CheckFailed unless `held` is true."""
    if not held:
        raise CheckFailed(f"Expected {expected}. Received: {received}")


def expect_equal(got, wanted, expected):
    """Raises CheckFailed unless two arrays are equal bit for bit."""
    expect(np.array_equal(got, wanted), expected, f"{short(got)} and {short(wanted)}")


def expect_close(got, wanted, expected, tolerance=1e-5):
    """Raises CheckFailed if a difference exceeds `tolerance * max(1, max(abs(wanted)))`."""
    expect(got.shape == wanted.shape, expected, f"shapes {got.shape} and {wanted.shape}")
    got, wanted = (np.asarray(array, "float64") for array in (got, wanted))
    worst = float(np.max(np.abs(got - wanted), initial=0.0))
    allowed = tolerance * max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    expect(worst <= allowed, expected, f"a difference of {worst:.2g}")


def short(array):
    """Returns the first 8 numbers of an array as text, for a message."""
    return np.array2string(np.asarray(array).ravel()[:8], separator=", ")


def config_of(component):
    """Returns a component's config as JSON."""
    with registry.without_tensorflow():
        config = registry.serialize(component.get_config())
    try:
        return json.dumps(config, sort_keys=True)
    except TypeError as problem:
        raise CheckFailed(f"Expected a config that JSON can hold. Received: {problem}") from problem
