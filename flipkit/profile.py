"""`python -m flipkit.profile` is `flipkit profile`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("profile")
