"""What a flipkit program asks of its process: large pages, and programs that are compiled once."""

import os
import pathlib
import platform
import sys

_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def take_huge_pages():
    """Starts this program again with large allocations on huge pages, if it is not running so.

    XLA takes the memory of a step anew for each step and gives it back: on a CPU, at 4 KiB a page, the
    kernel's work on those pages is a third of a training step (docs/performance.md). glibc reads its
    tunables once, when a process starts, so nothing short of a new start turns them on. The process
    keeps its number and its command line. GLIBC_TUNABLES in the environment, whatever it says, is left
    alone; so is every system without glibc.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = _HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def cache_programs():
    """Keeps compiled programs between processes, so that a run that goes on starts at once."""
    import jax

    folder = os.environ.get("FLIPKIT_CACHE", pathlib.Path.home() / ".cache" / "flipkit")
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder) / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
