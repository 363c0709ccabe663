"""benchmarks/gpu.py, which waits for a GPU: its rows, tiny, on a CPU; its budget; its arithmetic."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from flipkit import recipe

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PEER = ROOT / ".venv-peer" / "bin" / "python"


@pytest.fixture
def module(monkeypatch):
    """Imports a file of benchmarks/ as scripts there import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def execute(folder, *flags):
    """Runs the benchmark with a file `gpu.json` in `folder`: what it printed, what it wrote."""
    path = folder / "gpu.json"
    command = [sys.executable, str(FOLDER / "gpu.py"), f"--json={path}", *flags]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.mark.slow
def test_a_dry_run_measures_every_kind_of_row(tmp_path):
    flags = (
        "--dry-run",
        "--largest",
        "--time-limit=800",
        "--peak=1e12",
        f"--plot={tmp_path / 'gpu.png'}",
    )
    printed, written = execute(tmp_path, *flags)
    rows = written["rows"]
    assert [row["state"] for row in rows] == ["done"] * len(rows), printed
    by_kind = {row["kind"]: row for row in rows}
    assert by_kind["recipe"]["finite"]
    assert by_kind["recipe"]["falls"]
    assert by_kind["contrastive"].keys() >= {"blocks", "whole", "ratio"}
    assert by_kind["attention"]["implementations"].keys() == {"auto", "einsum", "fused"}
    assert by_kind["largest"]["largest"] == 8
    train = [row for row in rows if row["kind"] == "train"]
    asked = {("dry L", 0.0), ("dry L", 0.5), ("dry L", 0.75), ("dry B", 0.0)}
    assert {(row["size"], row["mask_ratio"]) for row in train} == asked
    for row in train:
        assert row["mfu"] == pytest.approx(row["rate"] * row["flops"] / 1e12)
    (theirs,) = (row["open_clip"] for row in train if row["peer"])
    if PEER.exists():
        assert theirs["ratio"] > 0
        assert theirs["compiled"].startswith("1 of ")
    else:
        assert "No module named" in theirs["absent"]
        assert "No module named" in printed
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_without_time_every_row_is_skipped_and_says_so(tmp_path):
    printed, written = execute(tmp_path, "--time-limit=0", "--largest")
    rows = written["rows"]
    assert {row["kind"] for row in rows} == {
        "recipe", "train", "contrastive", "attention", "largest",
    }  # fmt: skip
    for row in rows:
        assert row["state"] == "skipped"
        assert row["reason"].startswith("0 s are left, and it needs ")
    assert len(rows) == 15
    assert printed.count(": skipped: 0 s are left") == len(rows)


def test_a_row_that_outlasts_the_budget_is_stopped(module):
    gpu = module("gpu")
    row = {"kind": "no such kind", "size": "dry B"}
    found = gpu.measured(row, dict(os.environ), seconds=0.1)
    assert found["state"] == "stopped"
    assert found["reason"] == "the time limit came"


def test_the_most_important_rows_come_first(module, monkeypatch):
    gpu = module("gpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--largest"])
    kinds = [row["kind"] for row in gpu.rows(gpu.parsed())]
    assert kinds[:2] == ["recipe", "train"]
    assert kinds[-6:] == ["largest"] * 6
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only=attention"])
    assert [row["kind"] for row in gpu.rows(gpu.parsed())] == ["attention"]


def test_the_model_is_the_recipes_own(module):
    mine = module("gpu_rows").flip_vitl({"size": "L"}).get_config()
    theirs = recipe.load("flip_vitl")().model.get_config()
    assert theirs.pop("tokenizer") is not None
    mine.pop("tokenizer")
    assert mine == theirs


def test_the_optimizer_is_the_recipes_own(module):
    mine = module("gpu_rows").flip_vitl_optimizer(1e-4).get_config()
    theirs = recipe.load("flip_vitl")().optimizer.get_config()
    mine.pop("learning_rate")
    theirs.pop("learning_rate")
    assert mine == theirs


@pytest.mark.parametrize("most", [0, 7, 8, 9, 100, 1000])
def test_the_search_finds_the_largest_that_fits(module, most):
    found = module("gpu_rows").search(lambda count: count <= most, 8, 1 / 16)
    assert found <= most
    assert most < 8 or most - found <= max(most / 16, 1)
    assert most >= 8 or found == 0
