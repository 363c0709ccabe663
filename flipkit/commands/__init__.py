"""The commands: a file each, over one shell."""
