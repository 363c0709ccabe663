"""A component in a process of its own: imported there alone, in a model from a file, on eight devices."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import weakref

import jax

DEVICES = 8
_MARK = "flipkit.testing: "  # what else is on the standard output is the component's

_CODE = """
import importlib, json, sys
importlib.import_module({module!r})
bridge = sys.modules.get("jax._src.xla_bridge")
backend = dict(value=bool(bridge and bridge.backends_are_initialized()))
print("\\n{mark}" + json.dumps(dict(backend=backend)), flush=True)
if {looks}:
    from flipkit.testing import elsewhere
    elsewhere.look(sys.stdin.readline())
"""


class Elsewhere:
    """A fresh process that has begun; what it finds is asked for later.

    Args:
        module: what it imports before anything else.
        looks: whether it then waits for a model to look at.
    """

    def __init__(self, module, looks=False):
        self._found = {}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _CODE.format(module=module, mark=_MARK, looks=looks)],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        weakref.finalize(self, _end, self._process, self._errors)

    def give(self, folder=None, trains=False):
        """Gives it the folder where a model and a batch lie (`models.put`); without one it ends.

        Args:
            trains: whether it also trains that model, on 8 simulated devices.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended
            if folder is not None:
                given = {"folder": str(folder), "trains": trains}
                self._process.stdin.write(json.dumps(given) + "\n")
            self._process.stdin.close()

    def tell(self, name):
        """What the process has found under a name; waits for it.

        Raises:
            RuntimeError: something was raised there, or the process has ended before.
        """
        while name not in self._found:
            line = self._process.stdout.readline()
            if not line:
                self._errors.seek(0)
                raise RuntimeError((self._errors.read().strip().splitlines() or ["nothing"])[-1])
            if line.startswith(_MARK):
                self._found |= json.loads(line.removeprefix(_MARK))
        if "raised" in self._found[name]:
            raise RuntimeError(self._found[name]["raised"])
        return self._found[name]["value"]


def look(line):
    """In the fresh process, which has imported the component's module: tells what it finds."""
    from flipkit.testing import models

    if not line:
        return
    given = json.loads(line)
    folder = pathlib.Path(given["folder"])
    jax.config.update("jax_disable_most_optimizations", True)
    _tell("embedded", lambda: models.load_and_embed(folder))
    if given["trains"]:
        _tell("loss", lambda: models.train_on_all(folder))


def _tell(name, find):
    try:
        found = {"value": find()}
    except Exception as problem:  # whatever a component raises is told to who asked
        found = {"raised": f"{type(problem).__name__}: {problem}".partition("\n")[0]}
    print(f"\n{_MARK}{json.dumps({name: found})}", flush=True)


def _environment():
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    flags = os.environ.get("XLA_FLAGS", "")
    variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    variables["JAX_PLATFORMS"] = "cpu"
    # What was compiled here need not be again there.
    for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
        if (value := getattr(jax.config, name)) is not None:
            variables[name.upper()] = str(value)
    return variables


def _end(process, errors):
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    errors.close()
