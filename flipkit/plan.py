"""`python -m flipkit.plan` is `flipkit plan`."""

from flipkit.commands import shell

if __name__ == "__main__":
    shell.start("plan")
