"""`python -m flipkit.evaluate` is `flipkit evaluate`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("evaluate")
