"""`python -m flipkit.show` is `flipkit show`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("show")
