"""`python -m flipkit.compare` is `flipkit compare`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("compare")
