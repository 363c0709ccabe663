"""Several processes of one run on this machine, as if each were a host: for trials and tests."""

import signal
import socket
import subprocess
import sys
import time

GRACE = 60  # seconds in which the others have to end by themselves after one has failed


def free_port() -> int:
    """A port of this machine that no process uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(words: list[str], count: int) -> int:
    """Starts `flipkit run` with these words in `count` processes; returns the worst exit code.

    The processes print where this one does: the first its progress, the others only what goes wrong.
    """
    command = [sys.executable, "-m", "flipkit.run", *words]
    command.append(f"--coordinator=127.0.0.1:{free_port()}")
    children = [
        subprocess.Popen([*command, f"--host={i}"], stdin=subprocess.DEVNULL)  # noqa: S603
        for i in range(count)
    ]
    try:
        return _wait(children)
    except KeyboardInterrupt:
        for child in children:
            child.send_signal(signal.SIGINT)
        return _wait(children) or 128 + signal.SIGINT
    finally:
        for child in children:
            child.kill()
            child.wait()


def _wait(children):
    deadline = None
    while any(child.poll() is None for child in children):
        failed = [i for i, child in enumerate(children) if child.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE
            code = children[failed[0]].returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            print(f"flipkit: host {failed[0]} ended with {how}; the others stop.", file=sys.stderr)
        if deadline is not None and time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.1)
    codes = [child.returncode for child in children]
    return max(128 - code if code < 0 else code for code in codes)
