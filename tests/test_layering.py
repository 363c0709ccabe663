"""Which way the imports point: docs/architecture.md says it, and the code does it."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def table():
    """{room: packages it may import}, in the order of the table; a room imports those before it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| *(.*?) *\|$", text, re.MULTILINE)
    return {room: {p for p in packages.split(", ") if p} for room, packages in rows}


def rooms():
    """{room: its files}."""
    folder = ROOT / "flipkit"
    found = {path.stem: [path] for path in folder.glob("*.py") if path.stem != "__init__"}
    return found | {
        path.parent.name: [*path.parent.glob("*.py")] for path in folder.glob("*/__init__.py")
    }


def imports(path):
    """Every module that a file imports, inside functions too: "flipkit.model", "keras", ..."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: an import from {'.' * node.level}"
            if node.module == "flipkit":
                yield from (f"flipkit.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_the_table_lists_every_room():
    assert set(table()) == set(rooms())


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_what_the_table_allows(room):
    order, homes = list(table()), _homes()
    for path in rooms()[room]:
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package == "flipkit":
                used = homes.get(rest, rest.partition(".")[0])
                if used in ("__version__", room):
                    continue
                assert order.index(used) < order.index(room), f"{room} imports {used}"
            elif package not in sys.stdlib_module_names:
                assert package in table()[room], f"{room} imports {package}"


def _homes():
    import flipkit

    return flipkit._HOMES


@pytest.mark.parametrize("plugin", sorted((ROOT / "plugins").glob("*/*.py")), ids=lambda p: p.stem)
def test_a_plugin_imports_only_the_public_package(plugin):
    assert not [name for name in imports(plugin) if name.startswith("flipkit.")]
