"""Prints constraints for pip: every lower bound of flipkit's own dependencies as the one release allowed.

What the tests need (the extra "dev") may be newer: they are not what users install.
"""

import pathlib
import re
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
own = [*project["dependencies"]]
for extra in extras.keys() - {"all", "dev"}:
    own += extras[extra]
for requirement in own:
    if found := re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", requirement):
        print(f"{found[1]}=={found[2]}")
