"""Settings of a flipkit process: large pages, cached programs, a quiet TPU library."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_HAS_FUSION_EMITTERS = "0.10."  # releases of jaxlib whose XLA is known to take the flag


def take_huge_pages():
    """Starts this program again with large allocations on huge pages, unless it runs so already.

    XLA allocates the memory of each step anew and frees it: on a CPU, at 4 KiB a page, the kernel's work
    on those pages is a third of a training step (docs/performance.md). glibc reads its tunables only when
    a process starts, so that a new start is the only way to turn them on. The process keeps its number and
    its command line. The function does nothing if the environment sets GLIBC_TUNABLES, or on a system
    without glibc.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = _HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def stay_on_cpu():
    """Keeps JAX on the CPU: only one process can use a TPU, perhaps one that trains.

    Call it before JAX is imported.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"


def skip_absent_tpu():
    """Keeps JAX from looking for a TPU where libtpu is installed and no TPU is there.

    The library prints errors of its own when it looks. The function sets JAX to the CPU where no other
    platform is possible: the environment names no platform, JAX has no plugin for a GPU, and the machine
    shows no TPU. Call it before JAX is imported.
    """
    if "JAX_PLATFORMS" in os.environ or "JAX_FORCE_TPU_INIT" in os.environ:
        return
    others = importlib.metadata.entry_points(group="jax_plugins")
    if others or importlib.util.find_spec("jax_plugins") or not importlib.util.find_spec("libtpu"):
        return
    if not _tpu_devices():
        os.environ["JAX_PLATFORMS"] = "cpu"


def _tpu_devices(root=pathlib.Path("/")):
    """Files that show a TPU: its device nodes, or a PCI device of Google's that may be one."""
    found = [*root.glob("dev/accel*"), *root.glob("dev/vfio/[0-9]*")]
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        kind = vendor.with_name("class")
        # Google's clouds have network (02) and storage (01) of the same vendor.
        known = kind.is_file() and kind.read_text().strip()[:4] in ("0x01", "0x02")
        if vendor.read_text().strip() == "0x1ae0" and not known:
            found.append(vendor)
    return found


def skip_fusion_emitters():
    """XLA compiles for a CPU faster, and its code runs slower: for programs that run a few times.

    XLA ends a process that passes an unknown flag, so the function does nothing with releases of jaxlib
    that were not tried. XLA_FLAGS of the environment come after, and win. Call it before JAX starts.
    """
    if importlib.metadata.version("jaxlib").startswith(_HAS_FUSION_EMITTERS):
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {given}".rstrip()


def describe_tpus():
    """Lets libtpu, a compiler for TPUs, work where no TPU is, and without its own messages.

    Call it before JAX loads libtpu, and in processes alone that need no TPU.
    """
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server of a cloud for a TPU
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock protects chips; a compiler needs none
        "TPU_ACCELERATOR_TYPE": "v3-8",  # any, or it complains; the topology decides
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }


def simulate_devices(count: int):
    """Makes JAX divide the CPU into so many devices. Call it before JAX starts."""
    given = os.environ.get("XLA_FLAGS", "")
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{given} {flag}".lstrip()  # of two, XLA takes the last one


def return_memory():
    """Gives memory that was freed back to the system, where glibc keeps it for later.

    A compiler frees most of what it takes in small pieces. After ViT-L/16 for 256 TPU-v3 cores a process
    held 13 GiB where it used 2, and the next compile had no room.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def cache_folder(name: str) -> pathlib.Path:
    """The folder of this user's cache of that name: `~/.cache/flipkit/NAME`, or `$FLIPKIT_CACHE/NAME`."""
    folder = os.environ.get("FLIPKIT_CACHE", pathlib.Path.home() / ".cache" / "flipkit")
    return pathlib.Path(folder) / name


def cache_programs():
    """Keeps compiled programs between processes, so that a resumed run starts at once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_folder("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def named_programs():
    """Inside it JAX compiles a program anew if it is kept with other names of its operations.

    JAX's cache gives out a program whatever the scopes were called when it was compiled.
    """
    import jax

    setting = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, setting)
    jax.config.update(setting, True)
    try:
        yield
    finally:
        jax.config.update(setting, before)
