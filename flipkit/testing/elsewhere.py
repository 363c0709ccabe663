"""A component in a process of its own: imported there alone, in a model from a file, on eight devices."""

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
_KEEP_ALL = {  # JAX's settings of what it keeps of the programs that it compiles, and where
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0,
    # A program would be known in one folder alone, if XLA kept a cache of its own there.
    "jax_persistent_cache_enable_xla_caches": "none",
}
_MARK = "flipkit.testing: "  # what else is on the standard output is the component's

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
    """What a process that begins fresh finds of a component; it works while others are asked.

    The components of a module that are checked one after the other share a process.

    Args:
        module: what it imports before anything else.
        looks: whether it is given models to look at.
    """

    def __init__(self, module, looks=False):
        asked = module, looks, tuple(_environment().items())
        if _process_of(*asked).ended:
            _process_of.cache_clear()
        self._process, self._look = _process_of(*asked), None

    def give(self, folder, trains):
        """Gives it the folder where a model and a batch lie (`holding.put`).

        Args:
            trains: whether it also trains that model, on 8 simulated devices.
        """
        self._look = self._process.give(folder, trains)

    def tell(self, name):
        """What the process has found under a name; waits for it.

        Raises:
            RuntimeError: something was raised there, or the process has ended before.
        """
        return self._process.tell(name if name == "backend" else f"{name} {self._look}")


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
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `tell` tells
            self._process.stdin.write(json.dumps(given) + "\n")
            self._process.stdin.flush()
        return self._given

    def tell(self, key):
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
    """In the fresh process, which has imported the component's module: tells what it finds."""
    folder = pathlib.Path(folder)
    jax.config.update("jax_disable_most_optimizations", True)
    _tell(f"embedded {number}", lambda: holding.load_and_embed(folder))
    if trains:
        _tell(f"loss {number}", lambda: holding.train_on_all(folder))
        keras.distribution.set_distribution(None)


def _tell(key, find):
    try:
        found = {"value": find()}
    except Exception as problem:  # whatever a component raises is told to who asked
        found = {"raised": f"{type(problem).__name__}: {problem}".partition("\n")[0]}
    print(f"\n{_MARK}{json.dumps({key: found})}", flush=True)


def _environment():
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    flags = os.environ.get("XLA_FLAGS", "")
    variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    variables["JAX_PLATFORMS"] = "cpu"
    # What was compiled here need not be again there.
    for name, value in _keeping().items():
        if value is not None:
            variables[name.upper()] = str(value)
    return variables


@contextlib.contextmanager
def shared_programs():
    """Keeps what is compiled inside it for the fresh processes, unless JAX already keeps it somewhere."""
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
