"""flipkit.process: a program starts itself again, once, with memory on huge pages."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc alone has the tunable"
)
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


def test_a_program_starts_again_with_the_tunable_and_its_own_command_line():
    before, after, last = run()
    assert before.split()[0] == "None"
    assert after.split()[0] == "glibc.malloc.hugetlb=1"
    assert before.split()[1:] == after.split()[1:]  # the same process, the same arguments
    assert before.endswith("['a b', '--c=d']")
    assert last == "on"


def test_what_the_environment_says_is_left_alone():
    told = "glibc.malloc.arena_max=2"
    first, last = run(GLIBC_TUNABLES=told)
    assert first.split()[0] == told
    assert last == "on"
