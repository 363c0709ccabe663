"""The distributions that offer components: loading them, and naming the broken ones."""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import reprlib
import warnings
from typing import Any

import pluggy
from absl import logging

from flipkit import __version__
from flipkit.errors import ConfigurationError, PluginError, UnknownName, nearest
from flipkit.plugins import hookspecs
from flipkit.plugins.offers import (
    BUILT_IN,
    HOOKS,
    KINDS,
    Component,
    Offer,
    Problem,
    Source,
    described,
    is_target,
    key_of,
    normal_name,
    unwrapped,
)
from flipkit.plugins.surroundings import jax_started, may_name, names_in

ARGUMENTS: dict[str, Any] = {}  # the hooks' arguments by name: so far none has any
_FAILED = object()


class Distributions(pluggy.PluginManager):
    """pluggy's manager, with a loading loop of its own.

    pluggy's loop stops at the first broken entry point without naming it. It silently skips the
    second of two with one name, and misspelt hooks.
    """

    def __init__(self):
        super().__init__("flipkit")
        self.add_hookspecs(hookspecs)
        self.sources: list[Source] = []  # of the plugins that were loaded
        self.disabled: dict[Source, str] = {}  # and by which variable
        self.offers: list[Offer] = []
        self.faults: list[Problem] = []
        self.deprecated: dict[Problem, Any] = {}  # and the function that causes it
        self._told: set[Problem] = set()
        self._unsound: set[str] = set()  # hooks that pluggy must not see

    # Loading

    def load(self, only_naming: str | None = None):
        """Load the built-ins, then every entry point that the environment allows.

        Args:
            only_naming: a hook; skips plugins whose file does not name it, and logs no problems.
        """
        self.add(importlib.import_module("flipkit.plugins.builtins"), BUILT_IN)
        only, without = names_in("FLIPKIT_PLUGINS"), names_in("FLIPKIT_DISABLE_PLUGINS")
        points = importlib.metadata.entry_points(group="flipkit")
        owners, known = {}, set()
        for point in sorted(points, key=lambda point: (point.dist.name or "", point.name)):
            entry = f"{point.name} = {point.value}"
            source = Source(point.dist.name or "unknown", point.dist.version, entry)
            names = {normal_name(source.distribution), normal_name(point.name)}
            known |= names
            if names & (without or set()):
                self.disabled[source] = "FLIPKIT_DISABLE_PLUGINS"
                continue
            if only is not None and not names & only:
                self.disabled[source] = "FLIPKIT_PLUGINS"
                continue
            if only_naming is not None and not may_name(point, only_naming):
                continue
            plugin = self.attempt(point.load, source, "all", "importing it")
            if plugin is not _FAILED:
                self.add(plugin, source)
            if (owner := owners.setdefault(point.name, source)) is not source:
                reason = f"{owner} has an entry point of this name too; both are loaded"
                fix = "Rename one; until then FLIPKIT_DISABLE_PLUGINS takes the distribution's name"
                self.fault(source, "all", reason, fix, missing=False)
        for name in sorted((only or set()) - known):
            absent = Source(name, "(not installed)", "none")
            fix = f"pip install {name}, or correct it. {nearest(name, known)[:-1]}"
            self.fault(absent, "all", "FLIPKIT_PLUGINS names it and nothing here does", fix)
        if only_naming is None:
            self.report()

    def add(self, plugin, source):
        """Register the sound hooks of `plugin` and collect their components."""
        if not self._speaks_our_api(plugin, source):
            return
        self._inspect(plugin, source)
        try:
            with warnings.catch_warnings():
                # pluggy's warning names no plugin: that of _deprecate does.
                warnings.simplefilter("ignore", hookspecs.Deprecated)
                self.register(plugin, name=key_of(source))
        except (ValueError, pluggy.PluginValidationError) as error:
            twin = self.get_name(plugin)
            reason = f"it is what {twin} loaded" if twin else " ".join(str(error).split())
            self.fault(source, "all", reason, "Remove the entry point or mend its module")
            return
        self.sources.append(source)
        for hook in HOOKS:
            for implementation in getattr(self.hook, hook).get_hookimpls():
                if implementation.plugin is plugin:
                    self._deprecate(hook, implementation, source)
                    self._collect(hook, implementation.function, source)

    def remove(self, source):
        """Remove the plugin that came from `source`."""
        self.unregister(name=key_of(source))
        self.sources = [s for s in self.sources if s != source]
        self.offers = [offer for offer in self.offers if offer.source != source]
        self.faults = [problem for problem in self.faults if problem.source != source]
        self.deprecated = {p: f for p, f in self.deprecated.items() if p.source != source}

    def attempt(self, function, source, hook, doing):
        """`function()`, or `_FAILED` and a Problem, also if it starts a JAX backend."""
        started = jax_started()
        try:
            result = function()
        except (Exception, SystemExit) as error:  # SystemExit: it is a script
            self.fault(
                source, hook, f"{doing} raised {described(error)}", mend(source), error=error
            )
            return _FAILED
        if jax_started() and not started:
            reason = f"{doing} started a JAX backend, so that flipkit can't place devices any more"
            fix = "Make arrays, random keys and layers in functions, not at import"
            self.fault(source, hook, reason, fix, missing=False)
        return result

    def _speaks_our_api(self, plugin, source):
        ours = hookspecs.FLIPKIT_API
        declared = getattr(plugin, "flipkit_api", (ours, ours))
        match declared:
            case (int(oldest), int(newest)) if oldest <= newest:
                if oldest <= ours <= newest:
                    return True
                reason = f"it needs hook API {oldest} to {newest}, flipkit {__version__} has {ours}"
                fix = f"pip install -U {'flipkit' if oldest > ours else source.distribution}"
            case _:
                reason = f"Expected flipkit_api = (oldest, newest), ints. Received: {declared!r}"
                fix = f"Write flipkit_api = ({ours}, {ours})"
        self.fault(source, "all", reason, fix)
        return False

    def _inspect(self, plugin, source):
        """Find the hooks of `plugin` that can't be called or that flipkit would never call."""
        self._unsound = set()
        marked = {name: self.parse_hookimpl_opts(plugin, name) for name in dir(plugin)}
        for name, marks in marked.items():
            hook = (marks or {}).get("specname") or name
            fault = functools.partial(self.fault, source, hook)
            if marks is None:
                if name in HOOKS:
                    fault("it isn't marked as a hook", f"Put @flipkit.hookimpl above def {name}()")
            elif hook not in HOOKS:
                if not marks["optionalhook"]:
                    later = "mark it @flipkit.hookimpl(optionalhook=True) if a later flipkit has it"
                    fault(
                        "there is no such hook",
                        f"Rename it, or {later}. {nearest(hook, HOOKS)[:-1]}",
                    )
            else:
                function = getattr(plugin, name)
                try:
                    inspect.signature(function).bind(**self._arguments(hook, function))
                except TypeError as error:
                    self._unsound.add(name)
                    known = ", ".join(self._specification(hook).argnames)
                    how = f"with {known}" if known else "without arguments"
                    fault(f"it is called {how} ({error})", f"Write def {name}({known}):")
        if not any(marked.values()) and not {*HOOKS} & marked.keys():
            self.fault(source, "all", "it implements no hook", f"Implement one: {', '.join(HOOKS)}")

    def parse_hookimpl_opts(self, plugin, name):
        """As in pluggy, but without unsound hooks, which are Problems by now."""
        return None if name in self._unsound else super().parse_hookimpl_opts(plugin, name)

    def _specification(self, hook) -> Any:
        return getattr(self.hook, hook).spec

    def _arguments(self, hook, function):
        """The arguments of the specification that a hook takes; it need not take any."""
        taken = inspect.signature(function).parameters
        return {n: ARGUMENTS[n] for n in self._specification(hook).argnames if n in taken}

    def _deprecate(self, hook, implementation, source):
        """Store the deprecation of the specification of `hook` for a plugin that implements it."""
        if source is BUILT_IN:
            return  # flipkit implements a hook as long as the hook exists
        spec = self._specification(hook)
        taken = (*implementation.argnames, *implementation.kwargnames)
        of_arguments = map((spec.warn_on_impl_args or {}).get, taken)
        for warning in filter(None, [spec.warn_on_impl, *of_arguments]):
            problem = Problem(source, hook, warning.reason, warning.fix, missing=False)
            self.deprecated[problem] = implementation.function

    def _collect(self, hook, function, source):
        """Store the entries of a hook's result that are valid."""
        call = functools.partial(function, **self._arguments(hook, function))
        offered = self.attempt(call, source, hook, "calling it")
        fault = functools.partial(self.fault, source, hook)
        if offered is _FAILED:
            return
        if not isinstance(offered, dict):
            received = f"Received: {reprlib.repr(offered)}"
            fault(f"Expected a dict. {received}", 'Return {"name": TheClass}')
            return
        for name, value in offered.items():
            offer = Offer(hook.removeprefix("flipkit_"), name, source, value)
            if not isinstance(name, str) or not re.fullmatch(r"[^\s:]+", name):
                fault(
                    f"Expected a name. Received: {name!r}", "Use a string without space and colon"
                )
            elif not is_target(offer.kind, value):
                wanted = f"Expected for {name!r} a class, a factory or 'module:attribute'"
                received = f"Received: {reprlib.repr(value)}"
                fault(f"{wanted}. {received}", "Return the class, not an object of it")
            elif any((o.kind, o.full_name) == (offer.kind, offer.full_name) for o in self.offers):
                twin = f"another entry point of {source.distribution} offers {name!r}"
                fault(twin, "Rename one of the two", missing=False)
            else:
                self.offers.append(offer)

    # Problems

    def fault(self, source, hook, reason, fix, **more) -> Problem:
        """Store a problem, once."""
        problem = Problem(source, hook, reason, fix, **more)
        if problem not in self.faults:
            self.faults.append(problem)
        return problem

    def problems(self):
        """The faults found, and the names that several offer."""
        return self.faults + [self._clash(offer) for offer in self.offers if self.rivals(offer)]

    def report(self):
        """Log the new problems; under FLIPKIT_STRICT_PLUGINS raise them.

        A deprecation becomes a Python warning, which a plugin's own tests show.
        """
        for problem in [p for p in self.deprecated if p not in self._told]:
            self._told.add(problem)
            code = self.deprecated[problem].__code__
            place = {"filename": code.co_filename, "lineno": code.co_firstlineno}
            warnings.warn_explicit(str(problem), DeprecationWarning, **place)
        new = [problem for problem in self.problems() if problem not in self._told]
        self._told.update(new)
        if new and os.environ.get("FLIPKIT_STRICT_PLUGINS", "0") not in ("", "0"):
            raise PluginError("\n".join(map(str, new))) from new[0].error
        for problem in new:
            logging.warning("%s", problem)

    def rivals(self, offer):
        """The offers that make this one's short name ambiguous."""
        if offer.source is BUILT_IN:
            return []
        same = [o for o in self.offers if (o.kind, o.name) == (offer.kind, offer.name)]
        return [o for o in same if o.source is BUILT_IN] or [o for o in same if o is not offer]

    def _clash(self, offer):
        rivals = self.rivals(offer)
        if rivals[0].source is BUILT_IN:
            reason = f"{offer.name!r} is built in and stays so"
        else:
            others = " and ".join(str(o.source) for o in rivals)
            reason = f"{offer.name!r} is offered by {others} too, so that alone it is refused"
        fix = f"Write {' or '.join(repr(o.full_name) for o in [offer, *rivals])}"
        return Problem(offer.source, offer.hook, reason, fix, missing=False)

    def _absent(self, hook):
        """The left-out or broken plugins that may offer the name, for the end of a message."""
        lines = [str(p) for p in self.faults if p.missing and p.hook not in {*HOOKS} - {hook}]
        lines += [f"Plugin {source} is left out by {by}." for source, by in self.disabled.items()]
        return "\nIt may belong to a plugin that isn't there:\n" + "\n".join(lines) if lines else ""

    # Looking up

    def names(self, kind):
        """The names that a user can write."""
        offers = [offer for offer in self.offers if offer.kind == kind]
        return sorted(offer.full_name if self.rivals(offer) else offer.name for offer in offers)

    def find(self, kind, name):
        """The offer with the name `name`."""
        if kind not in KINDS:
            raise UnknownName(f"Unknown kind of component: {kind!r}. {nearest(kind, KINDS)}")
        distribution, _, short = name.rpartition(":")
        offers = [offer for offer in self.offers if offer.kind == kind]
        found = [offer for offer in offers if offer.name == short]
        if distribution:
            wanted = normal_name(distribution)
            found = [o for o in found if normal_name(o.source.distribution) == wanted]
        else:
            found = [o for o in found if o.source is BUILT_IN] or found
        if len(found) == 1:
            return found[0]
        if found:
            whose = " or ".join(f"{o.full_name!r} ({o.source})" for o in found)
            raise ConfigurationError(f"Several of the {kind} are called {name!r}: write {whose}.")
        known = [offer.full_name for offer in offers] if distribution else self.names(kind)
        raise UnknownName(
            f"None of the {kind} is called {name!r}. {nearest(name, known)}"
            f"{self._absent(f'flipkit_{kind}')}"
        )

    def resolve(self, offer):
        """The component of `offer`; if a plugin can't import it, the error names the plugin."""
        return self.attribute(offer, offer.load, f"importing {offer.target!r} for {offer.name!r}")

    def make(self, offer):
        """An object of the component of `offer`, made without arguments; errors likewise."""
        return self.attribute(
            offer, self.resolve(offer), f"making {offer.name!r} without arguments"
        )

    def attribute(self, offer, function, doing):
        """`function()`; an error of a plugin's component becomes one that names the plugin."""
        try:
            return function()
        except Exception as error:
            if offer.source is BUILT_IN:
                raise
            reason = f"{doing} raised {described(error)}"
            more = {"missing": False, "error": error}
            problem = self.fault(offer.source, offer.hook, reason, mend(offer.source), **more)
            raise PluginError(str(problem)) from error

    def offer_of(self, kind, owner):
        """The plugin's offer of the class `owner`, or one of the same package."""
        mine = [o for o in self.offers if o.kind == kind and o.source is not BUILT_IN]
        exact = [o for o in mine if o.target == f"{owner.__module__}:{owner.__qualname__}"]
        package = owner.__module__.partition(".")[0]
        near = [o for o in mine if re.split("[.:]", o.target)[0] == package]
        return next(iter(exact + near), None)

    def describe(self, offer) -> Component:
        """The listing's line for `offer`."""
        rivals, summary, status = self.rivals(offer), "", "ok"
        if rivals:
            why = "shadowed" if rivals[0].source is BUILT_IN else "ambiguous"
            status = f"{why}: write {offer.full_name}"
        try:
            doc = unwrapped(self.resolve(offer)).__doc__ or ""
            summary = doc.strip().partition("\n")[0]
        except Exception as error:  # a listing lists broken components too
            status = f"broken: {described(error.__cause__ or error)}"
        fields = {"target": offer.target, "summary": summary, "status": status}
        return Component(offer.kind, offer.name, **dataclasses.asdict(offer.source), **fields)


def mend(source: Source) -> str:
    """How to mend a plugin that raises."""
    if source is BUILT_IN:
        return "Reinstall flipkit; if that doesn't help, it is a bug to report"
    own = source.distribution
    return (
        f"Install what it lacks, or another version (pip install -U {own}), or leave it out "
        f"(FLIPKIT_DISABLE_PLUGINS={own}); FLIPKIT_STRICT_PLUGINS=1 shows the traceback"
    )
