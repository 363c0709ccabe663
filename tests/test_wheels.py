"""What others get: wheels of flipkit and of a page's plugin, in an environment of their own."""

import functools
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def execute(*command, cwd, timeout=600):
    """Runs a command where only what is installed is found, and returns what it printed."""
    own = ("FLIPKIT_PLUGINS", "FLIPKIT_DISABLE_PLUGINS", "PYTHONPATH", "KERAS_BACKEND")
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"COLUMNS": "160"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_package(document, folder):
    """The files of a page: its blocks that begin with their name. Returns the first module's code."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n# ([\w.]+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for name, code in blocks:
        folder.joinpath(name).write_text(code, encoding="utf-8")
    return blocks[0][1]


@pytest.fixture
def registry(tmp_path):
    """Skips where pip reaches no packages."""
    probe = ("download", "--quiet", "--no-deps", "--retries=0", "--dest", tmp_path / "probe")
    done = subprocess.run(
        [sys.executable, "-m", "pip", *probe, "hatchling"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"pip reaches no packages: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_the_plugin_of_the_page_trains_by_its_name_where_only_wheels_are_installed(tmp_path):
    package, wheels, elsewhere = (tmp_path / name for name in ("package", "wheels", "elsewhere"))
    package.mkdir()
    elsewhere.mkdir()
    code = write_package("docs/your_masker.md", package)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20

    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels)
    ours = [ROOT / "plugins" / name for name in ("numpy_arrays", "simclr")]
    execute(*build, ROOT, package, *ours, cwd=tmp_path)
    built = sorted(wheels.iterdir())
    names = ["flipkit", "flipkit_disc", "flipkit_numpy", "flipkit_simclr"]
    assert [wheel.name.partition("-")[0] for wheel in built] == names
    with zipfile.ZipFile(built[0]) as wheel:
        top = {name.partition("/")[0] for name in wheel.namelist()}
        assert "flipkit/recipes/flip_shapes.py" in wheel.namelist()
    assert {name.partition("-")[0] for name in top} == {"flipkit"}

    execute(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    execute(python, "-m", "pip", "install", "--quiet", *built, cwd=tmp_path, timeout=1_200)
    absent = "import importlib.util as u; print(u.find_spec('tensorflow'))"
    assert execute(python, "-c", absent, cwd=elsewhere).strip() == "None"

    listed = execute(python, "-m", "flipkit.plugins", "--hook", "maskers", cwd=elsewhere)
    assert "  disc, flipkit-disc 0.1.0\n      Keeps the patches nearest" in listed
    named = ("flip_shapes", "scale=tiny", "model.masker=disc", "--workdir", "runs/disc")
    execute(python, "-m", "flipkit.run", *named, cwd=elsewhere)
    run = elsewhere / "runs" / "disc"
    assert "flipkit_disc>DiscMasker" in run.joinpath("run.json").read_text()
    assert run.joinpath("model.keras").is_file()

    # A plugin's format, command, evaluator, and another's model, by the console script.
    flipkit = functools.partial(execute, python.with_name("flipkit"), cwd=elsewhere)
    assert "embed" in flipkit("--help")
    flipkit("convert", "runs/disc", "arrays", "--format", "numpy", "--verify")
    assert elsewhere.joinpath("arrays/variables/logit_scale.npy").is_file()
    data = ("data=captioned_shapes", "data.size=8")
    assert "8 vectors of 16 numbers" in flipkit("embed", "arrays", *data, "out=vectors.npy")
    assert "uniformity" in flipkit("evaluate", "arrays", "sphere", *data)
    flipkit("run", "simclr_shapes", "scale=tiny", "--workdir", "runs/simclr")
    assert "flipkit_simclr>SimCLR" in elsewhere.joinpath("runs/simclr/run.json").read_text()
