"""`python -m flipkit.run` is `flipkit run`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("run")
