"""`python -m flipkit.plugins --check`: what is installed gets a verdict, one component after the other."""

import functools
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tomllib
import types

import keras
import numpy as np
import pytest

import flipkit
from flipkit import plugins
from flipkit.commands import list_plugins as command
from flipkit.commands import shell
from flipkit.plugins import hookspecs
from flipkit.testing import installed

REPOSITORY = pathlib.Path(__file__).parents[1]
register = keras.saving.register_keras_serializable(package="test_installed")


@register
class Sound(flipkit.Schedule):
    """A rate that does what it must."""

    def __init__(self, peak=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.peak = peak

    def rate(self, samples, total):
        return self.peak * (1 - samples / total)

    def get_config(self):
        return {**super().get_config(), "peak": self.peak}


@register
class Negative(Sound):
    """Below 0 at the end."""

    def rate(self, samples, total):
        return self.peak * (1 - 2 * samples / total)


@register
class Meant(Negative):
    """Says that it is meant so."""

    expected_failures = {"is_a_rate_everywhere": "it climbs at the end"}


@register
class Mistaken(Sound):
    """Expects a check to fail that there isn't."""

    expected_failures = {"is_a_rate_everywere": "a slip"}


@register
class Needy(Sound):
    """Can't be made without an argument."""

    def __init__(self, peak, **kwargs):
        super().__init__(peak, **kwargs)


@register
class Shown(Needy):
    """Neither can this, but it has an example."""

    @classmethod
    def example(cls):
        return cls(1e-3)


@register
class Falling(Sound):
    """Raises when it is made."""

    def __init__(self, peak=1e-3, **kwargs):
        raise RuntimeError("no file")


@register
class Folder(flipkit.Dataset):
    """Needs a path, which only a sample has."""

    def __init__(self, path=None):
        self.path = path

    def __len__(self):
        if self.path is None:
            raise flipkit.DataError("Expected a path")
        return 3

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return {"image": np.zeros((4, 4, 3), "uint8"), "texts": ["black"], "id": str(i)}


class Blank(Folder):
    """Refuses what it can do when it is asked in another way."""

    def __len__(self):
        return 3

    def texts(self, i):
        raise flipkit.DataError("no texts alone")


@pytest.fixture
def offer(monkeypatch):
    """Registers a plugin: `offer("name", schedules={...})`. The checks are those that are quick."""
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    for kind, make_checks in installed.CHECKS.items():

        def quick(make, make_checks=make_checks):
            return [check for check in make_checks(make) if not check.slow]

        monkeypatch.setitem(installed.CHECKS, kind, quick)
    plugins.reset()

    def register(name, **kinds):
        hooks = {
            f"flipkit_{kind}": hookspecs.hookimpl(lambda offered=offered: offered)
            for kind, offered in kinds.items()
        }
        plugins.register(types.SimpleNamespace(__version__="1.2", **hooks), name=name)

    yield register
    plugins.reset()


def verdict(name):
    (found,) = installed.check_installed(name)
    return found


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (Sound, "conforms: 7 checks in 0 s"),
        (Meant, "conforms: 6 checks, 1 more fails on purpose, in 0 s"),
        (Negative, "fails: 1 of 7 checks in 0 s"),
        (Mistaken, "fails: its expected_failures"),
        (Falling, "broken: it raised RuntimeError: no file"),
        (Shown, "conforms: 7 checks in 0 s"),
        (functools.partial(Shown, 2e-3), "conforms: 7 checks in 0 s"),
        (functools.partial(Shown), "broken: it raised TypeError"),
        (lambda: 3, "broken: Expected a Schedule. Received: int"),
        (dict, "broken: Expected a Schedule. Received: dict"),
        (Needy, "not checked: missing a required argument: 'peak'; give its class a classmethod"),
        ("no_such_module:Slow", "broken: ModuleNotFoundError"),
    ],
)
def test_the_verdict_on_a_schedule(offer, made, told):
    offer("mine", schedules={"slow": made})
    seconds = str(verdict("slow"))
    seconds = f"{seconds[: seconds.rindex(' in ')]} in 0 s" if seconds.endswith(" s") else seconds
    assert seconds.startswith(told)


def test_what_refuses_to_be_used_at_all_is_not_checked_and_what_refuses_later_fails(offer):
    offer("mine", datasets={"folder": Folder, "blank": Blank}, losses={"none": object})
    assert str(verdict("folder")) == f"not checked: Expected a path; {installed.HINT}"
    assert verdict("blank").status == "fails"
    assert str(verdict("none")) == "not checked: there are no checks of losses"


def test_a_failed_check_names_the_plugin_and_what_mends_it(offer):
    offer("mine", schedules={"low": Negative, "slip": Mistaken, "falling": Falling})
    (problem,) = verdict("low").problems
    place = "Plugin mine 1.2 (entry point: plugins.register, hook: flipkit_schedules): "
    assert str(problem).startswith(f"{place}'low' fails is_a_rate_everywhere. Expected no rate ")
    assert "Negative, or say why it is meant so: expected_failures = {" in problem.fix
    (problem,) = verdict("slip").problems
    assert "Did you mean 'is_a_rate_everywhere'?" in problem.reason
    assert problem.fix.startswith("Name existing checks in the expected_failures of ")
    (problem,) = verdict("falling").problems
    assert problem.fix.endswith(installed.HINT)


def test_the_sizes_of_a_class_with_an_example_are_checked_once(offer, monkeypatch):
    begun = []
    check = installed.CHECKS["schedules"]
    monkeypatch.setitem(
        installed.CHECKS, "schedules", lambda make: begun.append(make) or check(make)[:2]
    )
    sizes = {str(peak): functools.partial(Shown, peak) for peak in (1e-3, 2e-3, 3e-3)}
    offer("mine", schedules=sizes)
    verdicts = list(installed.check_installed())
    assert [v.status for v in verdicts] == ["conforms"] * 3
    assert [v.component.name for v in verdicts] == sorted(sizes)
    assert begun.count(Shown) == 1


@pytest.fixture
def three(offer):
    offer("mine", schedules={"slow": Sound}, datasets={"blank": Blank}, losses={"none": object})
    offer("theirs", schedules={"low": Meant, "constant": Sound})


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["blank", "slow", "constant", "low"]),
        (["--hook", "schedules"], ["slow", "constant", "low"]),
        (["mine"], ["blank", "slow"]),
        (["theirs", "blank"], ["blank", "constant", "low"]),
        (["theirs:low", "none"], ["low", "none"]),
        (["constant"], ["constant", "constant"]),  # flipkit's own one too
        (["flipkit", "--hook", "flipkit_schedules"], ["constant", "warmup_cosine"]),
    ],
)
def test_what_is_checked_can_be_chosen(three, capsys, monkeypatch, arguments, names):
    monkeypatch.setattr(
        installed._Judgement,
        "_run_quick",
        lambda judgement, make: installed.Verdict(judgement._component, "conforms"),
    )
    shell.answer(command.main, ["--json", "--check", *arguments])
    out, progress = capsys.readouterr()
    assert [v["name"] for v in json.loads(out)["verdicts"]] == names
    told = [line for line in progress.splitlines() if line.startswith("Checking ")]
    assert [line.split()[2] for line in told] == names


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["slo"], "Did you mean 'slow'?"),
        (["mine", "their"], "Did you mean 'theirs'?"),
        (["slow", "--hook", "datasets"], "Nothing installed is called 'slow'."),
        (["flipkit-block-masker"], "flipkit-block-masker 0.1.0 is left out by FLIPKIT_PLUGINS."),
        (["--hook", "schedule"], "Did you mean 'schedules'?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(three, capsys, arguments, told):
    assert shell.answer(command.main, ["--check", *arguments]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert told in said


def test_the_command_prints_a_table_and_what_fails(offer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    offer("mine", schedules={"slow": Sound, "low": Negative})
    assert shell.answer(command.main, ["--check", "slow"]) == 0
    out, progress = capsys.readouterr()
    told = "Checking schedules slow (mine 1.2)\n  slow: conforms: 7 checks in "
    assert told in progress
    assert "Plugin mine" not in out
    assert " ".join(out.splitlines()[3].split()).startswith("schedules slow mine 1.2 conforms: 7")
    assert shell.answer(command.main, ["--check"]) == 1
    table, _, below = capsys.readouterr().out.partition("Plugin mine ")
    assert "fails: 1 of 7 checks" in table
    assert below.startswith("1.2 (entry point: plugins.register, hook: flipkit_schedules): ")
    assert "'low' fails is_a_rate_everywhere" in below


def test_json_has_every_check(offer, capsys):
    offer("mine", schedules={"low": Meant})
    assert shell.answer(command.main, ["--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (found,) = told["verdicts"]
    assert (found["name"], found["distribution"], found["verdict"]) == ("low", "mine", "conforms")
    assert found["checks"]["counts_samples"] == {"status": "passed", "message": ""}
    failed = found["checks"]["is_a_rate_everywhere"]
    assert failed["status"] == "expected failure"
    assert failed["message"].startswith("it climbs at the end (Expected no rate below 0.")
    assert told["problems"] == []


def test_a_plugin_that_is_broken_is_told_where_it_is_asked_for(offer, capsys, monkeypatch):
    offer("mine", schedules={"slow": Sound})
    plugins._loaded().fault(
        plugins.Source("absent", "1.0", "absent = absent"), "all", "importing it raised", "Mend it"
    )
    assert shell.answer(command.main, ["--check", "mine"]) == 0
    assert shell.answer(command.main, ["--check", "absent"]) == 1
    assert shell.answer(command.main, ["--check"]) == 1
    assert "Plugin absent 1.0 (entry point: absent = absent, hook: all)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["vit", "text_transformer", "constant", "warmup_cosine", "clip_bpe", "wordpiece"]
)
def test_what_flipkit_ships_has_an_example_or_needs_none(offer, name, monkeypatch):
    few = {kind: (lambda make, c=c: c(make)[:4]) for kind, c in installed.CHECKS.items()}
    monkeypatch.setattr(installed, "CHECKS", few)
    assert verdict(f"flipkit:{name}").status == "conforms"


def distributions():
    """Those in `plugins/` that are installed."""
    for path in sorted(REPOSITORY.glob("plugins/*/pyproject.toml")):
        name = tomllib.loads(path.read_text())["project"]["name"]
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        yield name


@pytest.mark.slow
@pytest.mark.parametrize("name", list(distributions()))
def test_our_plugins_conform(name):
    command = [sys.executable, "-m", "flipkit.plugins", "--check", name, "--json"]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {v["name"]: v["verdict"] for v in json.loads(done.stdout)["verdicts"]}
    # Of formats, commands and evaluators there are no checks.
    assert {*verdicts.values()} == ({"conforms"} if name != "flipkit-numpy" else set()), verdicts
