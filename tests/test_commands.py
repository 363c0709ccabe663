"""The shell of all commands: finding one, what plugins add, and what is imported for it."""

import types

import pytest

import flipkit
from flipkit.commands import shell


@pytest.fixture
def plugin(monkeypatch):
    """Registers commands as a plugin's."""
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    flipkit.plugins.reset()

    def add(**commands):
        module = types.ModuleType("flipkit_words")
        hook = flipkit.hookimpl(lambda: commands)
        hook.__name__ = "flipkit_commands"
        module.flipkit_commands = hook
        flipkit.plugins.register(module, name="flipkit-words")

    yield add
    flipkit.plugins.reset()


def test_a_plugins_command_gets_the_words_and_returns_the_exit_code(plugin):
    seen = []

    def greet(words):
        """Greets."""
        seen.extend(words)
        return 3

    plugin(greet=greet)
    assert shell.call("greet", ["a", "b=c"]) == 3
    assert seen == ["a", "b=c"]
    assert "greet     Greets (flipkit-words)" in shell.overview()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_plugins_command_is_its_docstring(plugin, capsys, flag):
    def greet(words):
        """Greets.

        flipkit greet NAME
        """
        raise AssertionError

    def bare(words):
        raise AssertionError

    plugin(greet=greet, bare=bare)
    assert shell.call("greet", [flag]) == 0
    assert capsys.readouterr().out == "Greets.\n\nflipkit greet NAME\n"
    assert shell.call("bare", [flag]) == 0
    assert capsys.readouterr().out == "flipkit bare has no description.\n"


def test_the_help_of_flipkit_lists_what_a_plugin_cannot_shadow(plugin):
    def run(words):
        """Runs elsewhere."""

    plugin(run=run, lost="flipkit_words.nowhere:lost")
    lines = [" ".join(line.split()) for line in shell.overview().splitlines()]
    assert "run trains the model of a recipe" in lines
    assert "flipkit-words:run Runs elsewhere (flipkit-words)" in lines
    assert "lost broken (flipkit-words)" in lines
    assert shell.find("run").__module__ == "flipkit.commands.run_recipe"


def test_the_version_is_printed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["flipkit", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        shell.start()
    assert capsys.readouterr().out == f"flipkit {flipkit.__version__}\n"


def test_what_a_plugins_command_refuses_is_one_line(plugin, capsys):
    def refuse(words):
        raise flipkit.DataError("no data")

    plugin(refuse=refuse)
    assert shell.call("refuse", []) == 2
    assert capsys.readouterr().err == "flipkit: no data\n"


def test_what_a_plugins_command_raises_names_the_plugin(plugin):
    def fail(words):
        raise KeyError("width")

    plugin(fail=fail)
    with pytest.raises(KeyError) as problem:
        shell.call("fail", [])
    assert "flipkit-words" in problem.value.__notes__[0]


def test_a_plugin_does_not_take_a_built_in_command(plugin):
    plugin(plan=lambda words: 7)
    assert shell.find("plan").__module__ == "flipkit.commands.plan_recipe"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plann", "None of the commands is called 'plann'. Did you mean 'plan'?"),
        ("--workdir", "Expected a command before --workdir."),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(plugin, capsys, name, told):
    assert shell.call(name, []) == 2
    assert capsys.readouterr().err.startswith(f"flipkit: {told}")


def test_help_imports_no_framework_and_no_plugin_without_a_command(fresh):
    found = fresh(
        "import sys\n"
        "from flipkit.commands import shell\n"
        "text = shell.overview()\n"
        "heavy = {'keras', 'jax', 'numpy', 'rich', 'tensorflow', 'grain', 'flipkit_block_masker'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "assert 'compare' in text and 'what a run will cost' in text, text"
    )
    assert found.split("\n")[0] == "[]"


def test_each_command_has_a_line_in_the_help():
    for name, what in shell.own_commands().items():
        assert what, name
