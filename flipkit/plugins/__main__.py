"""`python -m flipkit.plugins` is `flipkit plugins`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("plugins")
