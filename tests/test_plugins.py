"""Plugins as they are found on a path: each fault is a real dist-info folder beside a module."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import flipkit
from flipkit import plugins, recipe
from flipkit.commands import list_plugins as command
from flipkit.commands import shell
from flipkit.errors import ConfigurationError, PluginError, UnknownName
from flipkit.plugins import builtins, hookspecs
from flipkit.testing import check_masker, installed

REPOSITORY = pathlib.Path(__file__).parents[1]
BUILT_IN = {kind: {*getattr(builtins, f"flipkit_{kind}")()} for kind in ("losses", "maskers")}
SOUND = """
import flipkit

class {cls}:
    "Keeps {name}.\\n\\nAnd more."

@flipkit.hookimpl
def flipkit_maskers():
    return {{"{name}": {cls}}}
"""


def sound(name):
    """A plugin's module that offers the masker `name`."""
    return SOUND.format(name=name, cls=name.title())


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs distributions, next to which no other plugin is seen; nothing of them stays."""
    really_installed = {
        point.dist.name for point in importlib.metadata.entry_points(group="flipkit")
    }
    monkeypatch.setenv("FLIPKIT_DISABLE_PLUGINS", ",".join(really_installed))
    monkeypatch.delenv("FLIPKIT_PLUGINS", raising=False)
    monkeypatch.delenv("FLIPKIT_STRICT_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)

    def install(name, code=None, version="1.2", entry_point=None):
        module = f"flipkit_{name}"
        if code is not None:
            (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: flipkit-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(
            f"[flipkit]\n{entry_point or f'{name} = {module}'}\n"
        )
        importlib.invalidate_caches()

    plugins.reset()
    yield install
    plugins.reset()
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def added():
    """The maskers' names that plugins have added."""
    return sorted({*plugins.names("maskers")} - BUILT_IN["maskers"])


@pytest.fixture
def logged(monkeypatch):
    messages = []
    monkeypatch.setattr(
        plugins.loading.logging, "warning", lambda text, *args: messages.append(text % args)
    )
    return messages


def run(*arguments, path="", **environment):
    variables = {"PYTHONPATH": f"{path}:{REPOSITORY}", "COLUMNS": "160", **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def masker(name, *body):
    """A plugin's module that offers a true masker `name`, whose `call` is `body`."""
    lines = "\n        ".join(body)
    return f"""
import flipkit
import keras
import numpy as np

@keras.saving.register_keras_serializable(package="flipkit_{name}")
class {name.title()}(flipkit.Masker):
    "Keeps some."

    def call(self, x, keep, *, grid, seed):
        {lines}

@flipkit.hookimpl
def flipkit_maskers():
    return {{"{name}": {name.title()}}}
"""


def offering(value, before="", hook="flipkit_maskers"):
    return f"{before}\nimport flipkit\n@flipkit.hookimpl\ndef {hook}():\n    return {value}\n"


FAULTS = {  # what is wrong: (module, hook, reason, fix)
    "it imports what is missing": (
        "import no_such_module",
        "all",
        "importing it raised ModuleNotFoundError: No module named 'no_such_module'",
        "pip install -U flipkit-broken",
    ),
    "it does not compile": ("def", "all", "SyntaxError", "FLIPKIT_DISABLE_PLUGINS=flipkit-broken"),
    "it is a script that exits": ("raise SystemExit(0)", "all", "SystemExit", "leave it out"),
    "there is no module": (
        None,
        "all",
        "No module named 'flipkit_broken'",
        "Install what it lacks",
    ),
    "its hook raises": (
        offering("1 / 0"),
        "flipkit_maskers",
        "calling it raised ZeroDivisionError: division by zero",
        "FLIPKIT_STRICT_PLUGINS=1 shows the traceback",
    ),
    "its hook takes an argument": (
        offering("{}").replace("()", "(registry)"),
        "flipkit_maskers",
        "called without arguments (missing a required argument: 'registry')",
        "Write def flipkit_maskers():",
    ),
    "its hook is misspelt": (
        offering("{}", hook="flipkit_masker"),
        "flipkit_masker",
        "there is no such hook",
        "Did you mean 'flipkit_maskers'?",
    ),
    "its hook is not marked": (
        offering("{}").replace("@flipkit.hookimpl", ""),
        "flipkit_maskers",
        "isn't marked",
        "Put @flipkit.hookimpl above def flipkit_maskers()",
    ),
    "its hook is no function": (
        "flipkit_maskers = {'broken': dict}",
        "flipkit_maskers",
        "isn't marked",
        "above def flipkit_maskers()",
    ),
    "its hook wraps": (
        offering("{}").replace("hookimpl", "hookimpl(wrapper=True)"),
        "all",
        "function is not a generator function",
        "mend its module",
    ),
    "it has no hook": ("", "all", "it implements no hook", "Implement one: flipkit_maskers, "),
    "its hook returns a list": (
        offering("['broken']"),
        "flipkit_maskers",
        "Expected a dict. Received: ['broken']",
        'Return {"name": TheClass}',
    ),
    "a name is no string": (
        offering("{3: dict}"),
        "flipkit_maskers",
        "Expected a name. Received: 3",
        "Use a string",
    ),
    "a name has a colon": (
        offering("{'a:b': dict}"),
        "flipkit_maskers",
        "Received: 'a:b'",
        "without space and colon",
    ),
    "it returns an object": (
        offering("{'broken': 3.5}"),
        "flipkit_maskers",
        "Expected for 'broken' a class, a factory or 'module:attribute'. Received: 3.5",
        "Return the class",
    ),
    "it returns a string without attribute": (
        offering("{'broken': 'some.module'}"),
        "flipkit_maskers",
        "Received: 'some.module'",
        "Return the class",
    ),
    "it is for a later flipkit": (
        offering("{}", before="flipkit_api = (2, 3)"),
        "all",
        f"needs hook API 2 to 3, flipkit {flipkit.__version__} has 1",
        "pip install -U flipkit.",
    ),
    "it is for an earlier flipkit": (
        offering("{}", before="flipkit_api = (0, 0)"),
        "all",
        "needs hook API 0 to 0",
        "pip install -U flipkit-broken.",
    ),
    "its API is no pair": (
        offering("{}", before="flipkit_api = '1'"),
        "all",
        "ints. Received: '1'",
        "Write flipkit_api = (1, 1)",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_told_with_its_place_and_fix_and_all_else_works(site, logged, what):
    code, hook, reason, fix = FAULTS[what]
    site("broken", code)
    site("sound", sound("stripes"))
    assert plugins.component("maskers", "stripes").__name__ == "Stripes"
    assert "random" in plugins.names("maskers")

    (problem,) = plugins.problems()
    place = f"(entry point: broken = flipkit_broken, hook: {hook})"
    assert str(problem).startswith(f"Plugin flipkit-broken 1.2 {place}: ")
    assert reason in problem.reason
    assert fix in str(problem).partition("Fix: ")[2]
    assert logged == [str(problem)]


@pytest.mark.parametrize("what", FAULTS)
def test_strict_makes_every_fault_an_error(site, monkeypatch, what):
    monkeypatch.setenv("FLIPKIT_STRICT_PLUGINS", "1")
    code, _, reason, _ = FAULTS[what]
    site("broken", code)
    for _ in range(2):  # it stays one
        with pytest.raises(PluginError, match=re.escape(reason)):
            plugins.names("maskers")


def test_strict_keeps_the_traceback(site, monkeypatch):
    monkeypatch.setenv("FLIPKIT_STRICT_PLUGINS", "1")
    site("broken", offering("1 / 0"))
    with pytest.raises(PluginError) as caught:
        plugins.names("maskers")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_one_bad_hook_leaves_the_others_of_its_plugin(site):
    site("mixed", sound("stripes") + offering("1 / 0", hook="flipkit_losses"))
    assert "stripes" in plugins.names("maskers")
    assert {*plugins.names("losses")} == BUILT_IN["losses"]


def test_one_bad_name_leaves_the_others_of_its_hook(site):
    site("mixed", offering("{'good': dict, 'bad': 3}"))
    assert added() == ["good"]


def test_a_hook_of_a_later_flipkit_may_be_optional(site):
    later = offering("{}", hook="flipkit_evaluators").replace(
        "hookimpl", "hookimpl(optionalhook=True)"
    )
    site("modern", later)
    assert plugins.problems() == []


def test_an_import_that_starts_jax_is_told(site, tmp_path):
    site("eager", sound("stripes") + "\nimport jax\njax.devices()\n")
    show = "from flipkit import plugins; print(plugins.names('maskers'), *plugins.problems())"
    done = run("-c", show, path=tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert "'stripes'" in done.stdout
    assert "Plugin flipkit-eager 1.2 (entry point: eager = flipkit_eager, hook: all)" in done.stdout
    assert "importing it started a JAX backend" in done.stdout
    assert "Fix: Make arrays, random keys and layers in functions" in done.stdout


def test_two_entry_points_of_one_name_are_both_loaded(site):
    site("one", sound("stripes"), entry_point="masker = flipkit_one")
    site("two", sound("dots"), entry_point="masker = flipkit_two")
    assert added() == ["dots", "stripes"]
    (problem,) = plugins.problems()
    assert "Plugin flipkit-two 1.2 (entry point: masker = flipkit_two, hook: all)" in str(problem)
    assert "flipkit-one 1.2 has an entry point of this name too; both are loaded" in problem.reason
    assert "FLIPKIT_DISABLE_PLUGINS takes the distribution's name" in problem.fix


def test_one_module_behind_two_entry_points_is_loaded_once(site):
    site("one", sound("stripes"))
    site("two", entry_point="two = flipkit_one")
    assert added() == ["stripes"]
    (problem,) = plugins.problems()
    assert problem.source.distribution == "flipkit-two"
    assert "it is what flipkit-one 1.2 (one = flipkit_one) loaded" in problem.reason


def test_a_name_of_two_plugins_is_refused_and_the_full_names_work(site, logged):
    site("one", sound("stripes"))
    site("two", sound("stripes"), version="0.3")
    with pytest.raises(ConfigurationError) as caught:
        plugins.component("maskers", "stripes")
    assert "'flipkit-one:stripes' (flipkit-one 1.2)" in str(caught.value)
    assert "'flipkit-two:stripes' (flipkit-two 0.3)" in str(caught.value)
    one = plugins.component("maskers", "flipkit-one:stripes")
    two = plugins.component("maskers", "Flipkit_Two:stripes")
    assert (one.__module__, two.__module__) == ("flipkit_one", "flipkit_two")
    assert added() == ["flipkit-one:stripes", "flipkit-two:stripes"]
    assert "Fix: Write 'flipkit-one:stripes' or 'flipkit-two:stripes'." in logged[0]
    statuses = [c.status for c in plugins.listing("maskers")]
    assert statuses[-2:] == [f"ambiguous: write flipkit-{n}:stripes" for n in ("one", "two")]


def test_a_plugin_does_not_take_a_built_in_name(site, logged):
    site("one", sound("random"))
    assert plugins.component("maskers", "random") is flipkit.RandomMasker
    assert plugins.component("maskers", "flipkit:random") is flipkit.RandomMasker
    assert plugins.component("maskers", "flipkit-one:random").__module__ == "flipkit_one"
    (message,) = logged
    assert (
        "Plugin flipkit-one 1.2 (entry point: one = flipkit_one, hook: flipkit_maskers)" in message
    )
    assert "Fix: Write 'flipkit-one:random' or 'flipkit:random'." in message
    (listed,) = [c for c in plugins.listing("maskers") if c.distribution == "flipkit-one"]
    assert listed.status == "shadowed: write flipkit-one:random"


def test_a_distribution_offers_a_name_once(site, tmp_path):
    site("one", sound("stripes"), entry_point="a = flipkit_one\nb = flipkit_more")
    (tmp_path / "flipkit_more.py").write_text(sound("stripes"))
    assert plugins.component("maskers", "stripes").__module__ == "flipkit_one"
    (problem,) = plugins.problems()
    assert "entry point: b = flipkit_more, hook: flipkit_maskers" in str(problem)
    assert "another entry point of flipkit-one offers 'stripes'" in problem.reason


def test_an_unknown_name_is_answered_with_the_nearest(site):
    site("one", sound("stripes"))
    with pytest.raises(UnknownName, match=r"Did you mean 'stripes'\? Known: .*random, stripes\."):
        plugins.component("maskers", "stirpes")
    with pytest.raises(UnknownName, match="Did you mean 'flipkit-one:stripes'"):
        plugins.component("maskers", "flipkit-on:stripes")
    with pytest.raises(UnknownName, match="Did you mean 'maskers'"):
        plugins.component("masker", "stripes")


def test_an_unknown_name_is_answered_with_the_broken_plugins_it_may_be_of(site):
    site("broken", "import no_such_module")
    site("losing", offering("1 / 0", hook="flipkit_losses"))
    with pytest.raises(UnknownName) as caught:
        plugins.component("maskers", "stripes")
    assert "It may belong to a plugin that isn't there:\nPlugin flipkit-broken 1.2" in str(
        caught.value
    )
    assert "No module named 'no_such_module'" in str(caught.value)
    assert "flipkit-losing" not in str(caught.value)  # it has no masker to offer


def test_a_string_is_imported_when_its_name_is_asked_for(site, tmp_path):
    site("lazy", offering("{'stripes': 'flipkit_lazy_stripes:Stripes'}"))
    (tmp_path / "flipkit_lazy_stripes.py").write_text("class Stripes: pass\n")
    assert "stripes" in plugins.names("maskers")
    assert "flipkit_lazy_stripes" not in sys.modules
    assert plugins.component("maskers", "stripes").__name__ == "Stripes"


@pytest.mark.parametrize("target", ["flipkit_nowhere:Stripes", "flipkit_lazy:Stripes"])
def test_a_string_that_leads_nowhere_tells_whose_it_is(site, target):
    site("lazy", offering(f"{{'stripes': '{target}'}}"))
    assert plugins.problems() == []
    with pytest.raises(PluginError) as caught:
        plugins.component("maskers", "stripes")
    place = "(entry point: lazy = flipkit_lazy, hook: flipkit_maskers)"
    assert f"Plugin flipkit-lazy 1.2 {place}: importing '{target}' for 'stripes'" in str(
        caught.value
    )
    assert "Fix: Install what it lacks" in str(caught.value)
    assert isinstance(caught.value.__cause__, (ImportError, AttributeError))
    assert plugins.listing("maskers")[-1].status.startswith("broken: ")
    assert len(plugins.problems()) == 1


def test_a_component_that_cannot_be_made_tells_whose_it_is(site):
    site("needy", sound("needy") + "\nNeedy.__init__ = lambda self, size: None\n")
    told = r"flipkit-needy 1\.2 .*hook: flipkit_maskers.*making 'needy'.*TypeError.*size.*Fix: "
    with pytest.raises(PluginError, match=told):
        flipkit.maskers.get("needy")


def test_a_plugin_may_ask_for_components_while_it_is_imported(site):
    site("nosy", sound("stripes") + "\nnames = flipkit.plugins.names('schedules')\n")
    assert plugins.component("maskers", "stripes")
    assert sys.modules["flipkit_nosy"].names == ["constant", "warmup_cosine"]


def test_a_recipe_is_found_by_module_function_or_path(site, tmp_path):
    path = tmp_path / "flipkit_runs.py"
    path.write_text("def recipe():\n    return 'a'\n\ndef base():\n    return 'b'\n")
    named = {"a": "flipkit_runs", "b": "flipkit_runs:base", "c": str(path)}
    site("recipes", offering(f"{named} | {{'d': lambda: 'd'}}", hook="flipkit_recipes"))
    made = [plugins.component("recipes", name)() for name in "abcd"]
    assert made == ["a", "b", "a", "d"]


@pytest.mark.parametrize("name", ["flipkit-broken", "Flipkit_Broken", "broken", "other, broken"])
def test_a_plugin_can_be_left_out(site, monkeypatch, name):
    monkeypatch.setenv("FLIPKIT_DISABLE_PLUGINS", name)
    site("broken", "raise SystemExit")
    site("sound", sound("stripes"))
    assert "stripes" in plugins.names("maskers")
    assert plugins.problems() == []
    assert "flipkit-broken" in {source.distribution for source in plugins.disabled()}
    with pytest.raises(UnknownName, match=r"broken 1\.2 is left out by FLIPKIT_DISABLE_PLUGINS"):
        plugins.component("maskers", "dots")


def test_all_plugins_can_be_left_out(site, monkeypatch):
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    site("sound", sound("stripes"))
    assert added() == []
    assert plugins.distributions() == {}


def test_some_plugins_can_be_chosen(site, monkeypatch):
    monkeypatch.setenv("FLIPKIT_PLUGINS", "flipkit-two")
    site("one", sound("stripes"))
    site("two", sound("dots"))
    assert added() == ["dots"]
    assert plugins.distributions() == {"flipkit-two": "1.2"}


def test_a_chosen_plugin_that_is_not_installed_is_told(site, monkeypatch):
    monkeypatch.setenv("FLIPKIT_PLUGINS", "flipkit-noe")
    site("one", sound("stripes"))
    (problem,) = plugins.problems()
    assert "FLIPKIT_PLUGINS names it and nothing here does" in problem.reason
    assert "Did you mean 'flipkit-one'?" in problem.fix


def test_distributions_are_those_that_loaded(site):
    site("one", sound("stripes"))
    site("broken", "raise ValueError")
    assert plugins.distributions() == {"flipkit-one": "1.2"}


def test_a_component_is_listed_with_its_source_and_first_line(site):
    site("one", sound("stripes"))
    (mine,) = [c for c in plugins.listing("maskers") if c.name == "stripes"]
    assert mine == plugins.Component(
        kind="maskers",
        name="stripes",
        distribution="flipkit-one",
        version="1.2",
        entry_point="one = flipkit_one",
        target="flipkit_one:Stripes",
        summary="Keeps stripes.",
        status="ok",
    )


def test_everything_flipkit_ships_can_be_imported_and_is_described(site):
    listed = plugins.listing()
    assert {c.kind for c in listed} == {*plugins.KINDS}
    assert [c for c in listed if c.status != "ok" or not c.summary] == []


def test_an_object_can_be_registered_and_replaced(site):
    for made in (dict, list):
        hook = hookspecs.hookimpl(lambda made=made: {"mine": made})
        plugins.register(types.SimpleNamespace(flipkit_maskers=hook), name="notebook")
        assert plugins.component("maskers", "mine") is made
        assert plugins.component("maskers", "notebook:mine") is made
    assert plugins.distributions() == {}
    plugins.reset()
    assert added() == []


def test_a_hook_that_goes_is_told_to_its_author_and_works_on(site, monkeypatch, logged, capsys):
    @hookspecs.hookspec(warn_on_impl=hookspecs.Deprecated("it goes", "Implement another"))
    def flipkit_maskers():
        """An old hook."""

    monkeypatch.setattr(hookspecs, "flipkit_maskers", flipkit_maskers)
    monkeypatch.setenv("FLIPKIT_STRICT_PLUGINS", "1")
    site("old", sound("stripes"))
    told = (
        "Plugin flipkit-old 1.2 (entry point: old = flipkit_old, hook: flipkit_maskers): it goes. "
        "Fix: Implement another."
    )
    with pytest.warns(DeprecationWarning, match=re.escape(told)) as caught:
        assert added() == ["stripes"]
    (warning,) = caught  # flipkit's own maskers come through the same hook
    assert pathlib.Path(warning.filename).name == "flipkit_old.py"
    assert plugins.component("maskers", "stripes").__name__ == "Stripes"
    assert plugins.problems() == []
    assert logged == []

    assert shell.answer(command.main, ["--hook", "maskers"]) == 0
    assert told in capsys.readouterr().out
    assert shell.answer(command.main, ["--hook", "maskers", "--json"]) == 0
    (deprecated,) = json.loads(capsys.readouterr().out)["deprecated"]
    assert deprecated["distribution"] == "flipkit-old"


def test_an_argument_reaches_who_asks_for_it_and_may_go_too(site, monkeypatch):
    goes = hookspecs.Deprecated("no hook gets `grid`", "Leave it out")

    @hookspecs.hookspec(warn_on_impl_args={"grid": goes})
    def flipkit_maskers(grid, api):
        """A hook with an old argument."""

    monkeypatch.setattr(hookspecs, "flipkit_maskers", flipkit_maskers)
    monkeypatch.setattr(plugins.loading, "ARGUMENTS", {"grid": "four", "api": "two"})
    for name, asks in {"old": "grid", "modern": "api", "careful": "grid=None", "plain": ""}.items():
        value = asks.partition("=")[0] or "'all'"
        site(name, offering(f"{{{value}: dict}}").replace("()", f"({asks})"))
    site("wrong", offering("{}").replace("()", "(patches)"))
    with pytest.warns(DeprecationWarning, match="no hook gets `grid`. Fix: Leave it out") as caught:
        names = added()
    told = {str(warning.message).split()[1] for warning in caught}
    assert told == {"flipkit-old", "flipkit-careful"}
    offered = ["all", "flipkit-careful:four", "flipkit-old:four", "two"]
    assert names == offered
    fault = plugins.problems()[0]
    assert "is called with grid, api (missing a required argument: 'patches')" in fault.reason
    assert fault.fix == "Write def flipkit_maskers(grid, api):"


def test_a_broken_object_is_not_registered(site):
    class Mine:
        @hookspecs.hookimpl
        def flipkit_maskers(self):
            return {"mine": dict}

        @hookspecs.hookimpl
        def flipkit_lossess(self):
            return {}

    place = re.escape(
        "Plugin Mine (no version) (entry point: plugins.register, hook: flipkit_lossess)"
    )
    with pytest.raises(PluginError, match=f"{place}.*Did you mean 'flipkit_losses'"):
        plugins.register(Mine())
    assert added() == []
    assert plugins.problems() == []


def test_registering_starts_no_backend_and_imports_no_keras(site, tmp_path):
    site("one", offering("{'stripes': 'keras:Layer'}"))
    script = (
        "import sys; from flipkit import plugins; assert plugins._manager is None;"
        "print(*(plugins.names(kind) for kind in plugins.KINDS));"
        "print({'keras', 'jax', 'tensorflow', 'numpy', 'grain'} & set(sys.modules))"
    )
    done = run("-W", "error", "-c", script, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'random', 'stripes']" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_every_hook_says_what_it_offers_and_when():
    for hook in plugins.HOOKS:
        text = getattr(hookspecs, hook).__doc__
        assert text.startswith("Offer ")
        assert "Called when " in text
        assert "        return {" in text


def test_the_command_lists_what_works_and_below_it_what_is_broken(site, tmp_path):
    site("one", sound("stripes"))
    site("broken", "import no_such_module")
    done = run("-m", "flipkit.plugins", "--hook", "maskers", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    table, _, below = done.stdout.partition("Plugin ")
    assert re.search(r"maskers\n(  .*\n)*  stripes, flipkit-one 1.2\n +Keeps stripes", table)
    assert re.search(r"  random, built in\n +Keeps ", table)
    assert "flipkit-broken 1.2 (entry point: broken = flipkit_broken, hook: all)" in below
    assert "Fix: " in below


def test_the_command_can_print_json(site, capsys):
    site("lazy", offering("{'stripes': 'flipkit_nowhere:Stripes'}"))
    assert shell.answer(command.main, ["--json", "--hook", "flipkit_maskers"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in answer["components"]} == {"stripes", *BUILT_IN["maskers"]}
    assert answer["components"][-1]["status"].startswith("broken: ModuleNotFoundError")
    (problem,) = answer["problems"]
    assert problem.keys() == {"distribution", "version", "entry_point", "hook", "reason", "fix"}


def test_the_command_answers_a_misspelt_hook_with_the_nearest(site, capsys):
    assert shell.answer(command.main, ["--hook", "masker"]) == 2
    assert "Did you mean 'maskers'" in capsys.readouterr().err


QUICK = {"is_made_without_arguments", "keeps_as_many_as_it_is_told", "repeats_itself"}
LISTED, CHECKED = ["--hook", "maskers"], ["--check"]
FLOATS = "return flipkit.maskers.keep_lowest(seed.uniform(x.shape[:2]), keep) * 1.0"
MOODY = (
    "noise = np.random.default_rng().random(x.shape[:2])",
    "return flipkit.maskers.keep_lowest(keras.ops.convert_to_tensor(noise, 'float32'), keep)",
)
TEN = {  # a plugin's name: (its module, what shows it, hook, status, reason, fix)
    "absent": (
        "import no_such_module",
        *(LISTED, "all", "broken"),
        "No module named 'no_such_module'",
        "Install what it lacks, or another version (pip install -U flipkit-absent), or leave it out",
    ),
    "raising": (
        offering("1 / 0"),
        *(LISTED, "flipkit_maskers", "broken"),
        "calling it raised ZeroDivisionError",
        "Install what it lacks, or another version (pip install -U flipkit-raising), or leave it out",
    ),
    "asking": (
        offering("{}").replace("()", "(registry)"),
        *(LISTED, "flipkit_maskers", "broken"),
        "called without arguments",
        "Write def flipkit_maskers():",
    ),
    "misspelt": (
        offering("{}", hook="flipkit_masker"),
        *(LISTED, "flipkit_masker", "broken"),
        "there is no such hook",
        "Rename it, or mark it @flipkit.hookimpl(optionalhook=True) if a later flipkit has it. "
        "Did you mean 'flipkit_maskers'?",
    ),
    "twin": (
        sound("twin"),
        *(LISTED, "all", "broken"),
        "flipkit-stripes 1.2 has an entry point of this name too",
        "Rename one",
    ),
    "rival": (
        sound("waves"),
        *(LISTED, "flipkit_maskers", "ambiguous"),
        "'waves' is offered by flipkit-waves 1.2 too",
        "Write 'flipkit-rival:waves' or 'flipkit-waves:waves'",
    ),
    "floats": (
        masker("floats", FLOATS),
        *(CHECKED, "flipkit_maskers", "fails: 1 of 3"),
        "'floats' fails keeps_as_many_as_it_is_told. Expected ",
        "Mend flipkit_floats:Floats",
    ),
    "moody": (
        masker("moody", *MOODY),
        *(CHECKED, "flipkit_maskers", "fails: 1 of 3"),
        "'moody' fails repeats_itself. Expected the same ids for the same seed and step",
        "Mend flipkit_moody:Moody",
    ),
    "later": (
        offering("{}", before="flipkit_api = (2, 3)"),
        *(LISTED, "all", "broken"),
        f"needs hook API 2 to 3, flipkit {flipkit.__version__} has 1",
        "pip install -U flipkit.",
    ),
    "eager": (
        sound("eager") + "\nimport jax\njax.devices()\n",
        *(LISTED, "all", "broken"),
        "importing it started a JAX backend",
        "Make arrays, random keys and layers in functions",
    ),
}


@pytest.fixture
def install(site, monkeypatch):
    """Installs one of the ten plugins, and sound ones beside it."""
    monkeypatch.setitem(
        installed.CHECKS,
        "maskers",
        lambda make: [check for check in check_masker(make) if check.name in QUICK],
    )
    site("stripes", sound("stripes"))
    site("waves", sound("waves"))

    def one(name):
        site(name, TEN[name][0], entry_point="stripes = flipkit_twin" if name == "twin" else None)

    return one


@pytest.mark.parametrize("name", TEN)
def test_each_of_ten_faults_is_listed_with_place_and_fix_and_all_else_works(
    install, capsys, monkeypatch, tmp_path, name
):
    install(name)
    monkeypatch.setenv("COLUMNS", "200")
    _, arguments, hook, status, reason, fix = TEN[name]
    if name == "eager":  # here JAX may run already
        said = run("-m", "flipkit.plugins", *arguments, path=tmp_path, JAX_PLATFORMS="cpu").stdout
    else:
        names = [name] if arguments is CHECKED else []
        assert shell.answer(command.main, [*arguments, *names]) == len(names)
        said = capsys.readouterr().out
    assert re.search(rf"flipkit-{name} 1\.2 .*{status}", said)
    entry_point = f"{'stripes' if name == 'twin' else name} = flipkit_{name}"
    (told,) = [
        line
        for line in said.splitlines()
        if line.startswith(
            f"Plugin flipkit-{name} 1.2 (entry point: {entry_point}, hook: {hook}): "
        )
    ]
    assert reason in told
    assert f"Fix: {fix}" in told

    assert plugins.component("maskers", "stripes").__name__ == "Stripes"
    model = recipe.load("flip_shapes")(scale="tiny").model
    assert isinstance(model.masker, flipkit.RandomMasker)


def test_ids_that_are_none_tell_whose_masker_they_are_of(install, tiny, pairs):
    install("floats")
    model = tiny(masker="floats", mask_ratio=0.5)
    with pytest.raises(PluginError) as caught:
        model(pairs(), training=True)
    (problem,) = [p for p in plugins.problems() if p.source.distribution == "flipkit-floats"]
    assert str(problem) in str(caught.value)
    place = "(entry point: floats = flipkit_floats, hook: flipkit_maskers)"
    told = f"Plugin flipkit-floats 1.2 {place}: Expected Floats to return int32 ids (batch, 8). "
    assert str(problem).startswith(f"{told}Received: float32 (8, 8). Fix: Mend it: ")
    assert "pip install -U flipkit-floats" in problem.fix
    assert tiny(masker="random", mask_ratio=0.5)(pairs(), training=True)["image"].shape == (8, 8)


def test_what_a_masker_raises_in_use_tells_whose_it_is(site, tiny, pairs):
    site("failing", masker("failing", "return x[no_such_name]"))
    with pytest.raises(NameError) as caught:
        tiny(masker="failing", mask_ratio=0.5)(pairs(), training=True)
    (problem,) = [p for p in plugins.problems() if p.source.distribution == "flipkit-failing"]
    assert str(problem) in caught.value.__notes__
    assert "(entry point: failing = flipkit_failing, hook: flipkit_maskers)" in str(problem)
    assert "Failing raised NameError" in problem.reason


def test_what_ones_own_masker_raises_is_left_alone(tiny, pairs):
    class Mine(flipkit.Masker):
        def call(self, x, keep, *, grid, seed):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        tiny(masker=Mine(), mask_ratio=0.5)(pairs(), training=True)
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.slow
def test_a_recipe_runs_beside_all_ten(install, tmp_path):
    for name in TEN:
        install(name)
    settings = (
        "flip_shapes",
        "scale=tiny",
        "phases.0.pairs=16",
        "--workdir",
        str(tmp_path / "run"),
    )
    command = [sys.executable, "-m", "flipkit.run", *settings]
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    assert (tmp_path / "run" / "model.keras").exists()
