"""A process of a peer's library, in an environment of its own, that takes steps for each line it reads."""

import json
import subprocess
import sys
import tempfile


class PeerEnded(SystemExit):
    """A peer's process ended by itself; not caught, it ends the program with its message."""


class Peer:
    """Starts a script of this folder with the peer's Python.

    Args:
        python: of the environment that has the peer.
        script: path of the script. For each line, the number of steps, it writes a line of JSON: `seconds`
            of a step, and more.
        arguments: of the script.
        environment: variables of the process; None is this one's.
    """

    memory = None  # what XLA reports of a program, and nobody of this process

    def __init__(self, python, script, *arguments, environment=None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
        self.process = subprocess.Popen(
            [python, str(script), *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.latest = {}  # the answer to the latest line

    def time_step(self, steps=1):
        """Seconds of a step: the mean of `steps`."""
        self.ask(steps)
        return self.answer()

    def ask(self, steps=1):
        """Begins steps, which the process takes while this one goes on; `answer` follows."""
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._raise()

    def answer(self):
        """Waits for the steps that `ask` began, and returns the seconds of one."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self._raise()
        self.latest = json.loads(line)
        return self.latest["seconds"]

    def _raise(self):
        code = self.process.wait()
        self.errors.seek(0)
        told = self.errors.read()
        sys.stderr.write(told)
        last = told.strip().rpartition("\n")[2]
        raise PeerEnded(f"The peer's process ended with code {code}: {last}")

    def close(self):
        """Ends the process."""
        self.process.communicate()
