"""The commands, one module each; `shell` starts them."""
