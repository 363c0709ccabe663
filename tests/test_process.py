"""flipkit.process: huge pages by one new start of the program, and no search for an absent TPU."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys

import pytest

from flipkit import process

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has the tunable")
PROGRAM = """
import os, sys
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], flush=True)
from flipkit.process import take_huge_pages
take_huge_pages()
print("on")
"""


def run(**environment):
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "a b", "--c=d"]
    return subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@glibc
def test_a_program_starts_again_with_the_tunable_and_its_own_command_line():
    before, after, last = run()
    assert before.split()[0] == "None"
    assert after.split()[0] == "glibc.malloc.hugetlb=1"
    assert before.split()[1:] == after.split()[1:]  # the same process, the same arguments
    assert before.endswith("['a b', '--c=d']")
    assert last == "on"


@glibc
def test_what_the_environment_says_is_left_alone():
    told = "glibc.malloc.arena_max=2"
    first, last = run(GLIBC_TUNABLES=told)
    assert first.split()[0] == told
    assert last == "on"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, False),
        ({"dev/null": ""}, False),
        ({"dev/accel0": ""}, True),
        ({"dev/vfio/0": ""}, True),
        ({"dev/vfio/vfio": ""}, False),
        ({"sys/bus/pci/devices/a/vendor": "0x1ae0\n"}, True),
        (
            {
                "sys/bus/pci/devices/a/vendor": "0x1ae0\n",
                "sys/bus/pci/devices/a/class": "0x020000\n",
            },
            False,
        ),
        ({"sys/bus/pci/devices/a/vendor": "0x10de\n"}, False),
    ],
)
def test_a_tpu_is_known_by_its_device(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert bool(process._tpu_devices(tmp_path)) == found


@pytest.mark.parametrize(
    ("environment", "installed", "devices", "platforms"),
    [
        ({}, ["libtpu"], [], "cpu"),
        ({}, [], [], None),
        ({}, ["libtpu"], ["dev/accel0"], None),
        ({}, ["libtpu", "jax_plugins"], [], None),  # a GPU's
        ({"JAX_PLATFORMS": "tpu"}, ["libtpu"], [], "tpu"),
        ({"JAX_FORCE_TPU_INIT": "1"}, ["libtpu"], [], None),
    ],
)
def test_jax_looks_for_no_tpu_where_none_is(
    monkeypatch, environment, installed, devices, platforms
):
    monkeypatch.setattr(os, "environ", dict(environment))
    monkeypatch.setattr(process, "_tpu_devices", lambda: devices)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    process.skip_absent_tpu()
    assert os.environ.get("JAX_PLATFORMS") == platforms


@pytest.mark.parametrize(
    ("jaxlib", "given", "flags"),
    [
        ("0.10.2", "", "--xla_cpu_use_fusion_emitters=false"),
        ("0.10.2", "--xla_dump_to=a", "--xla_cpu_use_fusion_emitters=false --xla_dump_to=a"),
        ("0.11.0", "--xla_dump_to=a", "--xla_dump_to=a"),  # XLA may not know the flag any more
        ("0.1.75", "", ""),
    ],
)
def test_a_flag_goes_to_jaxlibs_that_know_it_and_before_what_was_given(
    monkeypatch, jaxlib, given, flags
):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"jaxlib": jaxlib}[name])
    process.skip_fusion_emitters()
    assert os.environ["XLA_FLAGS"] == flags


def test_devices_are_simulated_whatever_the_environment_says(fresh):
    code = (
        "from flipkit import process\n"
        "process.simulate_devices(3)\n"
        "import jax\n"
        "print(jax.device_count())"
    )
    assert fresh(code, devices=2, JAX_PLATFORMS="cpu").split() == ["3"]


def test_the_caches_lie_in_one_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FLIPKIT_CACHE", str(tmp_path))
    assert process.cache_folder("plans") == tmp_path / "plans"
    monkeypatch.delenv("FLIPKIT_CACHE")
    assert process.cache_folder("plans").parts[-3:] == (".cache", "flipkit", "plans")
