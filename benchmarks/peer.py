"""A process of a peer's library, in an environment of its own, that takes a step for each line it reads."""

import json
import subprocess
import sys


class Peer:
    """Starts a script of this folder with the peer's Python.

    Args:
        python: of the environment that has the peer.
        script: path of the script. It writes a line of JSON with `seconds` for each line that it reads.
        arguments: of the script.
        environment: variables of the process; None is this one's.
    """

    memory = None  # what XLA reports of a program, and nobody of this process

    def __init__(self, python, script, *arguments, environment=None):
        self.process = subprocess.Popen(
            [python, str(script), *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def time_step(self):
        """Seconds of one step."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"The peer's process ended with code {self.process.wait()}; see above.")
        return json.loads(answer)["seconds"]

    def close(self):
        """Ends the process."""
        self.process.communicate()
