"""Runs every block of code in the documents, in order, in an empty folder.

A python block that begins with the comment `# name.py` is also written as that file. A toml block with
entry points is installed, as `pip install -e .` would. A bash block runs where TensorFlow can't be
imported, and nothing may try to; commands that would take hours are shortened by SHORTENED.

The pages about a plugin of one's own have many commands, so that only slow tests run those; the code of
such a page, and the checks of its plugin that are not slow, run in every test.
"""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import types

import pytest
from PIL import Image

import flipkit

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/data.md",
    "docs/maskers.md",
    "docs/your_model.md",
)
# Their parts have quicker tests of their own.
SLOW = ("docs/keras_nlp.md", "docs/model_fit.md", "docs/weights.md")
PAGES = tuple(f"docs/your_{kind}.md" for kind in ("masker", "encoder", "dataset", "schedule"))
SHORTENED = {"flip_vitl": "--list"}  # recipe -> what is added to its command


def blocks(document):
    """(line, language, code) of every block between fences; the line is that of its first."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start(2)) + 1, match[1], match[2]


def write_shards(folder):
    """`shards/test-00000.tar` with twelve labelled pictures, and `classnames.json`."""
    shapes = flipkit.CaptionedShapes("test", size=12, image_size=32)
    folder.joinpath("shards").mkdir()
    folder.joinpath("classnames.json").write_text(json.dumps(shapes.classnames()))
    with tarfile.open(folder / "shards" / "test-00000.tar", "w") as tar:
        for i in range(len(shapes)):
            sample, picture = shapes[i], io.BytesIO()
            Image.fromarray(sample["image"]).save(picture, "PNG")
            members = {
                "png": picture.getvalue(),
                "txt": sample["texts"][0].encode(),
                "json": json.dumps({"label": sample["label"]}).encode(),
            }
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{i:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def install(project, folder):
    """Makes the modules in `folder` a distribution with entry points."""
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    info.joinpath("METADATA").write_text(metadata)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")


def targets():
    """What the Makefile can make."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def run_bash(code, folder, environment, where):
    for command in code.replace("\\\n", "").splitlines():
        command = command.partition("  #")[0].strip()
        words = command.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "make":
            assert words[1] in targets(), f"{where}: the Makefile has no {words[1]}"
            continue
        if words[:4] == ["python", "-m", "pip", "install"] or words[:2] == ["pip", "install"]:
            continue
        assert " -m flipkit." in command or words[0] in ("flipkit", "cat", "pytest"), (
            f"{where}: can't test {command!r}"
        )
        for recipe, addition in SHORTENED.items():
            command += f" {addition}" if f"run {recipe} " in command else ""
        # The compiler for TPUs takes minutes, and may not be installed.
        command = re.sub(r"--topology \S+", "--topology cpu:1 scale=tiny", command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
        )
        told = f"{where}: {command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, told
        assert "Traceback" not in done.stderr, told
        assert not folder.joinpath(".absent", "asked").exists(), f"imports TensorFlow: {told}"


@pytest.fixture
def environment(tmp_path):
    """For subprocesses: our Python, the folder's modules, no TensorFlow, programs kept for the next one."""
    absent = tmp_path / ".absent"
    absent.mkdir()
    absent.joinpath("tensorflow.py").write_text(
        "import pathlib\n"
        "pathlib.Path(__file__).with_name('asked').touch()\n"
        "raise ImportError('left out by the test')\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLIPKIT_")}
    path = os.pathsep.join(map(str, (absent, tmp_path, ROOT)))
    return {
        **kept,
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": path,
        "FLIPKIT_CACHE": str(tmp_path / ".cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture
def run_code(tmp_path, monkeypatch, environment):
    """Runs the code of a document, with or without its commands, and returns what it defined."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FLIPKIT_CACHE", environment["FLIPKIT_CACHE"])
    write_shards(tmp_path)
    module = types.ModuleType("document")  # a module, so that it can be registered as a plugin
    monkeypatch.setitem(sys.modules, "document", module)
    before = set(sys.modules)

    def run(document, commands=True):
        for line, language, code in blocks(document):
            where = f"{document}:{line}"
            if language == "python":
                if named := re.match(r"# ([\w/]+\.py)\n", code):
                    tmp_path.joinpath(named[1]).write_text(code)
                exec(compile("\n" * (line - 1) + code, ROOT / document, "exec"), vars(module))
            elif language == "bash":
                if commands:
                    run_bash(code, tmp_path, environment, where)
            elif language == "toml":
                install(tomllib.loads(code)["project"], tmp_path)
            else:
                assert language == "text", f"{where}: say which language this block is in"
        return module

    yield run
    flipkit.plugins.reset()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]  # another document may have a module of this name


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, *(pytest.param(page, marks=pytest.mark.slow) for page in (*PAGES, *SLOW))],
)
def test_every_block_of_code_runs(document, run_code):
    if document == "docs/keras_nlp.md":
        for package in ("keras_nlp", "flipkit_keras_nlp"):
            pytest.importorskip(package, reason="pip install -e plugins/keras_nlp_encoders")
    run_code(document)


@pytest.mark.parametrize("page", PAGES)
def test_the_plugin_of_a_page_is_short_and_does_what_it_must(page, run_code):
    module = run_code(page, commands=False)
    plugin = next(code for _, language, code in blocks(page) if language == "python")
    assert sum(bool(line.strip()) for line in plugin.splitlines()[1:]) <= 20
    [tests] = [value for name, value in vars(module).items() if name.startswith("test_")]
    [parametrized] = tests.pytestmark
    checks = [check for check in parametrized.args[1] if not check.slow]
    assert len(checks) > 2
    for check in checks:
        tests(check)


def test_every_link_leads_to_a_file():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/*.md")]:
        text = re.sub(r"<!--.*?-->", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_links_of_the_readme_are_absolute_and_lead_to_files():
    """A package index shows it without the repository around it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    hosts = {
        "https://github.com/flipkit/flipkit/blob/main/",
        "https://raw.githubusercontent.com/flipkit/flipkit/main/",
    }
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://"), target
        for host in hosts:
            if target.startswith(host):
                assert (ROOT / target.removeprefix(host)).exists(), target


def test_the_readme_is_short_and_begins_with_python_soon():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1_300
    assert text[: text.index("```python")].count("\n") < 60
