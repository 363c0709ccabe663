"""Runs a component in a fresh process: imports it alone, loads it from a file, trains on eight devices."""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import weakref

import jax
import keras
from jax.experimental.compilation_cache import compilation_cache

DEVICES = 8
_KEEP_ALL = {  # JAX's settings of its cache of compiled programs
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0,
    # With XLA's own cache on, a program's key depends on the folder.
    "jax_persistent_cache_enable_xla_caches": "none",
}
_MARK = "flipkit.testing: "  # other lines of the standard output come from the component

_CODE = """
import importlib, json, sys
importlib.import_module({module!r})
bridge = sys.modules.get("jax._src.xla_bridge")
backend = dict(value=bool(bridge and bridge.backends_are_initialized()))
print("\\n{mark}" + json.dumps(dict(backend=backend)), flush=True)
if {looks}:
    from flipkit.testing import elsewhere, holding
    for line in sys.stdin:
        elsewhere.look(holding, **json.loads(line))
"""


class Elsewhere:
    """A fresh process that inspects a component in the background.

    Components of one module that are checked one after the other share a process.

    Args:
        module: name of the module that the process imports first.
        looks: whether the process reads models from `give`.
    """

    def __init__(self, module, looks=False):
        key = module, looks, tuple(_environment().items())
        if _process_of(*key).ended:
            _process_of.cache_clear()
        self._process, self._look = _process_of(*key), None

    def give(self, folder, trains):
        """Passes the process the folder of a model (`holding.put`).

        Args:
            trains: whether the process also trains that model, on 8 simulated devices.
        """
        self._look = self._process.give(folder, trains)

    def result(self, name):
        """Waits for the process's result of that name, and returns it.

        Raises:
            RuntimeError: the process raised an exception, or ended without this result.
        """
        return self._process.result(name if name == "backend" else f"{name} {self._look}")


class _Process:
    def __init__(self, module, looks, environment):
        self._found, self._given = {}, 0
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _CODE.format(module=module, mark=_MARK, looks=looks)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        weakref.finalize(self, _end, self._process, self._errors)

    @property
    def ended(self):
        return self._process.poll() is not None

    def give(self, folder, trains):
        self._given += 1
        given = {"number": self._given, "folder": str(folder), "trains": trains}
        with contextlib.suppress(BrokenPipeError):  # it has ended: `result` raises
            self._process.stdin.write(json.dumps(given) + "\n")
            self._process.stdin.flush()
        return self._given

    def result(self, key):
        while key not in self._found:
            line = self._process.stdout.readline()
            if not line:
                self._errors.seek(0)
                raise RuntimeError((self._errors.read().strip().splitlines() or ["nothing"])[-1])
            if line.startswith(_MARK):
                self._found |= json.loads(line.removeprefix(_MARK))
        if "raised" in self._found[key]:
            raise RuntimeError(self._found[key]["raised"])
        return self._found[key]["value"]


@functools.lru_cache(maxsize=1)
def _process_of(module, looks, environment):
    return _Process(module, looks, environment)


def look(holding, number, folder, trains):
    """Runs in the fresh process, after the import of the component's module; prints the results."""
    folder = pathlib.Path(folder)
    jax.config.update("jax_disable_most_optimizations", True)
    _report(f"embedded {number}", lambda: holding.load_and_embed(folder))
    if trains:
        _report(f"loss {number}", lambda: holding.train_on_all(folder))
        keras.distribution.set_distribution(None)


def _report(key, find):
    try:
        found = {"value": find()}
    except Exception as problem:  # a component may raise anything; `result` raises it again
        found = {"raised": f"{type(problem).__name__}: {problem}".partition("\n")[0]}
    print(f"\n{_MARK}{json.dumps({key: found})}", flush=True)


def _environment():
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    flags = os.environ.get("XLA_FLAGS", "")
    variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    variables["JAX_PLATFORMS"] = "cpu"
    # The fresh process reads this process's compiled programs.
    for name, value in _keeping().items():
        if value is not None:
            variables[name.upper()] = str(value)
    return variables


@contextlib.contextmanager
def shared_programs():
    """Inside it JAX stores compiled programs for the fresh processes, unless it has a cache already."""
    before = _keeping()
    if before["jax_compilation_cache_dir"] is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        _keep({**_KEEP_ALL, "jax_compilation_cache_dir": folder})
        try:
            yield
        finally:
            _keep(before)


def _keeping():
    return {name: getattr(jax.config, name) for name in _KEEP_ALL}


def _keep(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # the next program opens the folder


def _end(process, errors):
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    errors.close()
