"""What tests share: the backend, a cache of their own, the smallest true model, fresh processes."""

import gc
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

from flipkit import process

# A sixth of the compile time: XLA's own passes stay, LLVM's and the fusions' don't. Flags that are given
# come after and win, so that a run with, say, --xla_cpu_max_isa=AVX2 takes no longer.
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {given}"
process.skip_fusion_emitters()

# Tracing makes many small objects that live. With Python's own threshold of 700 the collector took 7 % of
# the time to look them through; with this one it takes 2 %.
gc.set_threshold(20_000, 50, 100)

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The folder that FLIPKIT_CACHE names while tests run.

    What was compiled is kept beside it, for all workers and the processes that they start.
    """
    folder, base = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
    settings = {
        "jax_compilation_cache_dir": str(
            (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
        ),
        "jax_persistent_cache_min_compile_time_secs": 0,
        # Programs of other folders have other keys, unless XLA keeps no cache of its own there.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLIPKIT_CACHE", str(folder))
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            if "jax" in sys.modules:  # which has read the environment already
                sys.modules["jax"].config.update(name, value)
        yield folder


@pytest.fixture(scope="session")
def close():
    """Asserts that float32 arrays are equal but for rounding, of the size of the largest number.

    A sum's error grows with its largest terms, not with what is left of them: what is allowed is `ulps`
    times float32's epsilon of the largest of `expected`.
    """

    def check(found, expected, ulps=16, **told):
        largest = float(np.max(np.abs(expected), initial=0.0))
        allowed = ulps * float(np.finfo("float32").eps) * largest
        np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, **told)

    return check


@pytest.fixture(scope="session")
def tiny():
    """Makes a FLIP of dim 16 and depth 1: 16 patches of 16-pixel images, 6 of 32 token ids.

    `image` and `text` change the towers' arguments or are towers, other keywords are FLIP's.
    """
    import flipkit

    def make(image=None, text=None, **changes):
        towers = {"dim": 16, "depth": 1, "heads": 2}
        if not hasattr(image, "dim"):
            image = flipkit.ViT(**{"image_size": 16, "patch_size": 4, **towers, **(image or {})})
        if not hasattr(text, "dim"):
            text = flipkit.TextTransformer(**{"vocab": 32, "length": 6, **towers, **(text or {})})
        return flipkit.FLIP(image, text, **{"dim": 8, **changes})

    return make


@pytest.fixture(scope="session")
def pairs():
    """Makes a batch: uint8 noise as images, int32 ids with padding as texts."""

    def make(batch=8, size=16, length=6, vocab=32, seed=0):
        rng = np.random.default_rng(seed)
        height, width = (size, size) if isinstance(size, int) else size
        text = rng.integers(1, vocab, (batch, length))
        words = rng.integers(2, length + 1, (batch, 1))
        return {
            "image": rng.integers(0, 256, (batch, height, width, 3)).astype("uint8"),
            "text": np.where(np.arange(length) < words, text, 0).astype("int32"),
        }

    return make


@pytest.fixture(scope="session")
def fresh(cache):
    """Runs code in a new process, where `flipkit` is importable, and returns what it printed.

    `devices` is how many CPU devices it has. Other keywords are environment variables:
    `fresh(code, KERAS_BACKEND="torch")`; None unsets one.
    """

    def run(code, devices=1, **environment):
        env = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
        env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
        env = {name: v for name, v in {**env, **environment}.items() if v is not None}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        if done.returncode:
            pytest.fail(f"The process failed:\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}")
        return done.stdout

    return run
