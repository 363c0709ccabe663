"""Several processes train one model: each reads its rows, the first writes, all end when one is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import flipkit
from flipkit import hosts
from flipkit.commands import loopback, shell

RECIPE = '''
import flipkit

def recipe(steps=6):
    """A tiny FLIP on shapes."""
    tower = dict(dim=32, depth=1, heads=4, dropout=0.1)
    image, text = flipkit.ViT(32, 8, **tower), flipkit.TextTransformer(259, 24, **tower)
    few = flipkit.CaptionedShapes(size=37, image_size=32)
    return flipkit.Run(
        flipkit.FLIP(image, text, dim=32, mask_ratio=0.5, tokenizer="bytes"),
        data=flipkit.CaptionedShapes(size=320, image_size=32),
        feed=flipkit.Feed(threads=1),
        optimizer=flipkit.AdamW(1e-3, use_ema=True),
        phases=[flipkit.Phase(32 * steps, 32)],
        evaluators={"retrieval": flipkit.Retrieval(few)},
        log_every=2, checkpoint_every=2, evaluate_every=4,
    )
'''


@pytest.fixture
def start(tmp_path, cache):
    """Starts `flipkit run` on the recipe; returns the process."""
    path = tmp_path / "small.py"
    path.write_text(RECIPE)

    def run(*words, devices=1):
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
        return subprocess.Popen(
            [sys.executable, "-m", "flipkit.run", str(path), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def test_parts_of_a_batch_make_the_batch(tiny):
    data, model = (
        flipkit.CaptionedShapes(size=40, image_size=32),
        tiny(text={"vocab": 259}, tokenizer="bytes"),
    )

    def opened(**part):
        return flipkit.Feed().open(data, model, 12, seed=3, first=7, **part)

    whole = opened()
    parts = [opened(process=i, processes=3) for i in range(3)]
    for step in (0, 5):
        read = [part.batch(step) for part in parts]
        for name, value in whole.batch(step).items():
            np.testing.assert_array_equal(np.concatenate([one[name] for one in read]), value)
    streams = [part.from_step(2) for part in parts]
    read = [next(stream)[0]["image"] for stream in streams]
    np.testing.assert_array_equal(np.concatenate(read), whole.batch(2)["image"])
    assert parts[0].seen == 3 * 4


@pytest.mark.parametrize(("process", "processes"), [(0, 5), (3, 3), (-1, 2), (0, 0)])
def test_a_part_that_a_batch_does_not_have_is_refused(process, processes, tiny):
    data = flipkit.CaptionedShapes(size=40, image_size=32)
    with pytest.raises(flipkit.ConfigurationError, match="rows can be split equally"):
        flipkit.Feed().open(
            data,
            tiny(text={"vocab": 259}, tokenizer="bytes"),
            12,
            process=process,
            processes=processes,
        )


def test_one_process_gathers_from_itself():
    assert hosts.gather({"a": [1]}) == [{"a": [1]}]
    assert (hosts.count(), hosts.index(), hosts.is_first()) == (1, 0, True)
    with pytest.raises(flipkit.DataError, match="none"):
        hosts.on_first(lambda: (_ for _ in ()).throw(flipkit.DataError("none")))


@pytest.mark.parametrize(
    "words",
    [
        ["--hosts=none"],
        ["--hosts=0"],
        ["--hosts=2", "--host=2", "--coordinator=a:1"],
        ["--hosts=2", "--host=0"],
        ["--hosts=2", "--coordinator=a:1"],
        ["--hosts=auto", "--host=0"],
        ["--host=0"],
    ],
)
def test_hosts_that_do_not_fit_are_refused(words, capsys):
    assert shell.call("run", ["flip_shapes", *words]) == 2
    assert "Expected --hosts=N --host=I --coordinator=HOST:PORT, with I below N" in (
        capsys.readouterr().err
    )


def rows(folder):
    timing = {"seconds", "pairs_per_second", "data_wait"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


@pytest.mark.slow
def test_two_processes_equal_one_with_two_devices(start, tmp_path):
    for name, hosted, devices in (("one", [], 4), ("two", ["--hosts=2"], 2)):
        words = ["distribution=fully_sharded", "mesh=2x2", f"--workdir={tmp_path / name}"]
        process = start(*words, *hosted, devices=devices)
        said, problems = process.communicate(timeout=280)
        assert process.returncode == 0, problems[-3_000:]
        assert said.count("step 6/6") == 1  # the first process alone reports
    assert len(rows(tmp_path / "one")) == 3
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    initial = [(tmp_path / name / "start.json").read_text() for name in ("one", "two")]
    assert initial[0] == initial[1]
    one, two = (flipkit.load_model(tmp_path / name / "model.keras") for name in ("one", "two"))
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

    # What two processes wrote, one goes on with.
    again = start(
        "steps=6", f"--workdir={tmp_path / 'two'}", "distribution=data_parallel", devices=2
    )
    said, problems = again.communicate(timeout=280)
    assert again.returncode == 0, problems[-3_000:]
    assert "Resuming at step 6 of 6." in said


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_process_is_killed_the_other_ends_within_a_minute(lost, start, tmp_path):
    words = ["steps=100000", "distribution=data_parallel", f"--workdir={tmp_path / 'run'}"]
    words += ["--hosts=2", f"--coordinator=127.0.0.1:{loopback.free_port()}"]
    processes = [start(*words, f"--host={i}") for i in range(2)]
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        processes[lost].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, problems = processes[1 - lost].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - lost].returncode not in (0, None)
    assert time.monotonic() - killed < 60
    if lost == 1:  # the coordinator's own end is reported by JAX
        assert "Host 0 lost another host of this run" in problems, problems[-3_000:]
