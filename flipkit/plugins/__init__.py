"""Components by name: flipkit's own, those of installed plugins, and the problems of broken plugins.

`flipkit plugins` lists them, and with `--check` runs the checks of `flipkit.testing` on installed ones.
Plugins are the modules that entry points of the group `flipkit` name; they are loaded when a component
is first looked up. A broken one becomes a `Problem`, logged once and listed, and the others are
loaded. Environment variables:

    FLIPKIT_PLUGINS=a,b           load only these distributions or entry points; empty: none
    FLIPKIT_DISABLE_PLUGINS=a,b   load all but these
    FLIPKIT_STRICT_PLUGINS=1      raise the problems as PluginError
"""

import threading
from typing import Any

from flipkit.errors import ConfigurationError, FlipkitError, PluginError, UnknownName, nearest
from flipkit.plugins import builtins
from flipkit.plugins.loading import Distributions, mend
from flipkit.plugins.offers import BUILT_IN as BUILT_IN
from flipkit.plugins.offers import BY_HAND, Offer, described
from flipkit.plugins.offers import HOOKS as HOOKS
from flipkit.plugins.offers import KINDS as KINDS
from flipkit.plugins.offers import Component as Component
from flipkit.plugins.offers import Problem as Problem
from flipkit.plugins.offers import Source as Source

_lock = threading.RLock()
_manager: Distributions | None = None


def _loaded() -> Distributions:
    global _manager
    with _lock:
        if _manager is None:
            _manager = Distributions()  # before it loads: a plugin may look up a name meanwhile
            try:
                _manager.load()
            except BaseException:
                _manager = None
                raise
        return _manager


def component(kind: str, name: str) -> Any:
    """The class, factory or recipe function with the name `name` among the `kind`.

    Args:
        kind: one of `KINDS`, such as `"maskers"`.
        name: a short name, or `"distribution:name"` where two plugins offer one name.

    Raises:
        UnknownName: nothing has that name; names the nearest, and broken plugins that may offer it.
        ConfigurationError: several have it; the message lists their full names.
        PluginError: its plugin can't import it.
    """
    manager = _loaded()
    return manager.resolve(manager.find(kind, name))


def make(kind: str, name: str) -> object:
    """An object of the component `name` among the `kind`, made without arguments.

    Raises:
        PluginError: its plugin can't import or make it. Otherwise as `component`.
    """
    manager = _loaded()
    return manager.make(manager.find(kind, name))


def built_in(kind: str, name: str) -> Any:
    """The built-in component `name` of the `kind`: no plugin is loaded.

    Raises:
        UnknownName: flipkit has none of that name.
    """
    offers = getattr(builtins, f"flipkit_{kind}")()
    if name not in offers:
        raise UnknownName(f"None of flipkit's {kind} is called {name!r}. {nearest(name, offers)}")
    return Offer(kind, name, BUILT_IN, offers[name]).load()


def offered_by_name(kind: str) -> list[Component]:
    """The components of a kind that plugins offer, as in `listing`.

    It loads only the plugins whose file names the hook: for callers that must not wait for all.
    """
    hook = f"flipkit_{kind}"
    with _lock:
        manager = _manager or Distributions()
        if manager is not _manager:
            manager.load(only_naming=hook)
    return [manager.describe(o) for o in manager.offers if o.kind == kind and o.source != BUILT_IN]


def names(kind: str) -> list[str]:
    """The names among the `kind`, as a user can write them."""
    return _loaded().names(kind)


def listing(*kinds: str) -> list[Component]:
    """The components of these kinds, or of all. Imports them, for their docstrings."""
    manager = _loaded()
    offers = sorted(manager.offers, key=lambda o: (o.source is not BUILT_IN, o.full_name))
    return [manager.describe(o) for kind in kinds or KINDS for o in offers if o.kind == kind]


def import_components() -> None:
    """Imports every component: Keras makes only registered classes from a file or a config."""
    listing(*(kind for kind in KINDS if kind not in ("commands", "formats", "recipes")))


def problems() -> list[Problem]:
    """The problems of the plugins."""
    return _loaded().problems()


def deprecated() -> list[Problem]:
    """The uses of hooks that a later flipkit won't have; until then they work."""
    return [*_loaded().deprecated]


def error_in_use(kind: str, component: object, reason: str, fix: str) -> FlipkitError:
    """The error, for the caller to raise, for a component that breaks its contract in use.

    It is a PluginError, and one of the `problems`, if a plugin offers the component's class.
    """
    manager = _loaded()
    offer = manager.offer_of(kind, type(component))
    if offer is None:
        return ConfigurationError(f"{reason}. {fix}.")
    fix = f"{fix}, or install another version (pip install -U {offer.source.distribution})"
    return PluginError(str(manager.fault(offer.source, offer.hook, reason, fix, missing=False)))


def note_owner(kind: str, component: object, error: BaseException) -> None:
    """Adds the plugin's name to an `error` that a component in use raised, if a plugin offers its class.

    It becomes one of the `problems` too; its type and its traceback stay, which the author needs.
    """
    manager = _loaded()
    offer = manager.offer_of(kind, type(component))
    if offer is not None and not isinstance(error, FlipkitError):
        reason = f"{type(component).__name__} raised {described(error)}"
        more = {"missing": False, "error": error}
        problem = manager.fault(offer.source, offer.hook, reason, mend(offer.source), **more)
        error.add_note(str(problem))


def note_problem(kind: str, name: str, error: BaseException) -> Problem:
    """Makes what a plugin's component raised in use one of the `problems`, and returns it."""
    manager = _loaded()
    offer = manager.find(kind, name)
    reason, more = f"{name!r} raised {described(error)}", {"missing": False, "error": error}
    return manager.fault(offer.source, offer.hook, reason, mend(offer.source), **more)


def disabled() -> dict[Source, str]:
    """The plugins left out, and the environment variable that excludes each."""
    return dict(_loaded().disabled)


def distributions() -> dict[str, str]:
    """The third-party distributions whose plugins are loaded, and their versions."""
    own = (BUILT_IN.entry_point, BY_HAND)
    return {s.distribution: s.version for s in _loaded().sources if s.entry_point not in own}


def register(plugin: object, name: str | None = None) -> None:
    """Adds hooks that aren't installed: those of a module or an object. For notebooks and tests.

    Args:
        plugin: the object with the hooks.
        name: replaces the distribution's name, and an earlier plugin of this name.

    Raises:
        PluginError: it is broken; nothing of it stays.
    """
    manager = _loaded()
    name = str(name or getattr(plugin, "__name__", type(plugin).__name__))
    source = Source(name, getattr(plugin, "__version__", "(no version)"), BY_HAND)
    with _lock:
        manager.remove(source)
        manager.add(plugin, source)
        if faults := [problem for problem in manager.faults if problem.source == source]:
            manager.remove(source)
            raise PluginError("\n".join(map(str, faults))) from faults[0].error
        manager.report()


def reset() -> None:
    """Removes all plugins, registered ones too; the next use loads them anew."""
    global _manager
    _manager = None
