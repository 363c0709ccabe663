"""What the documents promise about the code: hooks, public names, files."""

import ast
import inspect
import pathlib
import re

import pytest

import flipkit
from flipkit import plugins
from flipkit.plugins import hookspecs

ROOT = pathlib.Path(__file__).parents[1]
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("flipkit_")}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_signature(hook):
    signature = str(inspect.signature(HOOKS[hook])).replace("typing.", "")
    assert f"`{hook}{signature}`" in read("CONTRIBUTING.md")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_example(hook):
    assert f"@flipkit.hookimpl\ndef {hook}():" in read("CONTRIBUTING.md")
    assert f"@hookspec\ndef {hook}" in read("flipkit/plugins/hookspecs.py")


def test_no_document_knows_a_hook_that_is_none():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/*.md")]:
        text = document.read_text(encoding="utf-8")
        named = set(re.findall(r"\bflipkit_\w+", text))
        modules = {path.stem for path in ROOT.glob("plugins/*/*.py")}
        modules |= set(re.findall(r"^# (flipkit_\w+)\.py$", text, re.MULTILINE))  # its own example
        modules |= {path.parent.name for path in ROOT.glob("plugins/*/*/__init__.py")}
        assert named <= HOOKS.keys() | modules, document.name


def test_the_stub_tells_the_same_public_names_as_the_module():
    stub = {
        (node.module, alias.name, alias.asname)
        for node in ast.parse(read("flipkit/__init__.pyi")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = {(f"flipkit.{home}", name, name) for name, home in flipkit._HOMES.items()}
    for name, home in flipkit._MODULES.items():
        package, _, module = f"flipkit.{home}".rpartition(".")
        names.add((package, module, name))
    assert stub == names


def test_every_public_name_can_be_had_and_says_what_it_is():
    for name in flipkit.__all__:
        assert getattr(flipkit, name).__doc__, f"flipkit.{name} has no docstring"


def test_every_component_has_a_line_of_summary():
    for component in plugins.listing():
        if component.distribution == "flipkit":
            assert component.summary.endswith("."), component.name


@pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
def test_every_benchmark_that_is_named_exists(document):
    for script in re.findall(r"benchmarks/\w+\.py", read(document)):
        assert (ROOT / script).is_file(), script


def test_the_changelog_has_this_version():
    assert f"## {flipkit.__version__} " in read("CHANGELOG.md")


def test_no_tracked_text_names_a_machine():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]:
        found = re.search(r"/(home|root|work|tmp|Users)/.*", path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found}"
