"""The template (copier.yml, template/): its packages are found, do what they must and pass their own CI.

A full run of such a CI is for slow tests; the checks that need no process of their own run in every test.
"""

import keyword
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import copier
import pytest

import flipkit
from flipkit import testing

ROOT = pathlib.Path(__file__).parents[1]
KINDS = ("masker", "encoder", "dataset", "schedule", "tokenizer", "model")
AUTHOR = 'Zoë "Z" O\'Neill 🦊'


@pytest.fixture
def template(tmp_path):
    """The template without the repository around it, from which Copier would take the last release."""
    folder = tmp_path / "template"
    shutil.copytree(ROOT / "template", folder / "template")
    for name in ("copier.yml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def make(template, tmp_path):
    """Makes a package and returns its folder; keywords are answers."""

    def run(kind="masker", **answers):
        folder = tmp_path / "package"
        answers = {"kind": kind, "name": f"my_{kind}", "author": AUTHOR, **answers}
        copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
        return folder

    return run


def project(folder):
    return tomllib.loads(folder.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]


def install(folder):
    """Has Python find the package in its own folder, with its entry points, as `pip install -e .` would."""
    told = project(folder)
    [(name, module)] = told["entry-points"]["flipkit"].items()
    info = folder / f"{module}-{told['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n"
    info.joinpath("METADATA").write_text(metadata)
    info.joinpath("entry_points.txt").write_text(f"[flipkit]\n{name} = {module}\n")
    return name, module


def execute(command, folder):
    """Runs a command of a package, where our Python finds what is in its folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLIPKIT_PLUGINS", "PYTEST_"))}
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), kept["PATH"]])
    environment = {**kept, "PATH": path, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_clean_is_found_and_does_what_it_must(kind, make, monkeypatch):
    folder = make(kind)
    execute("ruff check . && ruff format --check .", folder)
    name, module = install(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("FLIPKIT_PLUGINS", project(folder)["name"])
    flipkit.plugins.reset()
    try:
        component = getattr(flipkit, f"{kind}s").get(name)
        assert component.__module__ == module
        assert flipkit.plugins.problems() == []
        checks = getattr(testing, f"check_{kind}")(type(component))
        checks = [check for check in checks if not check.slow]
        assert len(checks) > 2
        for check in checks:
            check()
    finally:
        flipkit.plugins.reset()
        sys.modules.pop(module, None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_package_passes_its_own_ci_and_keeps_what_its_readme_says(kind, make):
    folder = make(kind)
    name, _ = install(folder)
    assert "- run: make test\n" in folder.joinpath(".github/workflows/test.yml").read_text()
    assert " passed" in execute("make test", folder)
    [block] = re.findall(r"```bash\n(.*?)```", folder.joinpath("README.md").read_text(), re.DOTALL)
    installing, listing, training = block.splitlines()
    assert installing == "pip install -e '.[dev]'"
    assert f"{project(folder)['name']} 0.1.0" in execute(listing, folder)
    execute(training, folder)
    assert folder.joinpath("runs", name, "model.keras").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_kept_as_they_are_given(kind, make):
    told = 'What is "\\" for? Größe 🦊'
    name = "a_name_of_24_letters_now"  # the longest; lines stay short enough
    folder = make(kind, name=name, description=told)
    execute("ruff check . && ruff format --check .", folder)
    assert project(folder)["description"] == told
    assert project(folder)["authors"] == [{"name": AUTHOR}]
    assert project(folder)["name"] == "flipkit-a-name-of-24-letters-now"
    for path in folder.rglob("*"):
        assert not re.search(r"{[{%]|[%}]}", str(path)), path


@pytest.mark.parametrize(
    "name", ["My Masker!", "disc-masker", "2d", "flipkit_disc", "a" * 25, "", "Disc", "_disc"]
)
def test_a_name_that_can_be_none_is_refused_with_what_was_expected(name, make):
    with pytest.raises(ValueError, match=f'lower-case words .*Received: "{re.escape(name)}"$'):
        make(name=name)


def test_every_keyword_of_python_is_refused_as_a_name(make):
    for word in keyword.kwlist:
        with pytest.raises(ValueError, match=f'Expected .*Received: "{word}"$'):
            make(name=word)


def test_a_kind_that_there_is_none_of_is_refused(make):
    with pytest.raises(ValueError, match="maskers"):
        make(kind="maskers")


def test_update_brings_what_is_new_and_keeps_what_is_ones_own(make, template):
    def git(folder, *arguments):
        who = ("-c", "user.name=Zoë", "-c", "user.email=zoe@localhost")
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)

    def commit(folder):
        git(folder, "init")
        git(folder, "add", "--all")
        git(folder, "commit", "--message", "As it is")

    commit(template)
    git(template, "tag", "v1.0.0")
    folder = make(kind="schedule", name="stairs")
    module = folder / "flipkit_stairs.py"
    module.write_text(module.read_text().replace("parts=3", "parts=7"))
    commit(folder)

    ignored = template / "template" / "package" / ".gitignore"
    ignored.write_text(ignored.read_text() + "notes/\n")
    commit(template)
    git(template, "tag", "v1.1.0")
    copier.run_update(folder, defaults=True, overwrite=True, quiet=True)
    assert "notes/" in folder.joinpath(".gitignore").read_text()
    assert "parts=7" in module.read_text()
    assert "_commit: v1.1.0" in folder.joinpath(".copier-answers.yml").read_text()
