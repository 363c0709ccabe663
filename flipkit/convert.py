"""`python -m flipkit.convert` is `flipkit convert`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("convert")
