"""Which way the imports point: docs/architecture.md says it, and the code does it."""

import ast
import pathlib
import re
import sys

import pytest

import flipkit

ROOT = pathlib.Path(__file__).parents[1]

# Never: they are slow to import, absent on many accelerators, or take hold of the device.
FRAMEWORKS = {
    "flax",
    "keras_hub",
    "keras_nlp",
    "optax",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}

# May import jax itself, where Keras has no word for what they need.
JAX = {
    "attention",
    "checkpoints",
    "distribution",
    "losses",
    "planning",
    "process",
    "run",
    "study",
    "testing",
    "train_step",
    "training",
}


def table():
    """{room: packages it may import}, in the order of the table; a room imports those before it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| *(.*?) *\|$", text, re.MULTILINE)
    return {room: {p for p in packages.split(", ") if p} for room, packages in rows}


def rooms():
    """{room: its files}."""
    folder = ROOT / "flipkit"
    found = {path.stem: [path] for path in folder.glob("*.py") if path.stem != "__init__"}
    commands = [*folder.glob("*/__main__.py")]
    for path in folder.glob("*/__init__.py"):
        found[path.parent.name] = [p for p in path.parent.glob("*.py") if p not in commands]
    return {**found, "__main__": commands}


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


def packages(room):
    """What a room imports beside flipkit and the standard library."""
    names = {name.partition(".")[0] for path in rooms()[room] for name in imports(path)}
    return names - sys.stdlib_module_names - {"flipkit"}


def test_the_table_lists_every_room():
    assert set(table()) == set(rooms())


@pytest.mark.parametrize("room", rooms())
def test_a_room_needs_all_that_the_table_allows(room):
    assert packages(room) == table()[room]


def test_the_arrow_goes_from_layers_over_kinds_and_model_to_training_and_run():
    order = list(table())
    kinds = ("maskers", "encoders", "datasets", "schedules", "tokenizers", "optimizers")
    for kind in kinds:
        way = ["errors", "plugins", "registry", "layers", kind, "model", "training", "run"]
        assert sorted(way, key=order.index) == way
        used = {name for path in rooms()[kind] for name in imports(path)}
        assert not used & {f"flipkit.{other}" for other in kinds if other != kind}


def test_no_framework_but_keras_and_seldom_jax_is_imported():
    for room in rooms():
        assert not packages(room) & FRAMEWORKS, room
        assert room in JAX or not packages(room) & {"jax", "jaxlib"}, room


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_what_the_table_allows(room):
    order, homes = list(table()), flipkit._HOMES
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


PLUGINS = [*(ROOT / "plugins").glob("*/*.py"), *(ROOT / "plugins").glob("*/flipkit_*/*.py")]


@pytest.mark.parametrize("plugin", sorted(PLUGINS), ids=lambda p: p.stem)
def test_a_plugin_imports_only_the_public_package(plugin):
    assert not [name for name in imports(plugin) if name.startswith("flipkit.")]


LIGHT = """
import sys
import flipkit

heavy = {"keras", "tensorflow", "jax", "jaxlib", "grain", "orbax", "numpy", "PIL", "torch"}
print(sorted(heavy & sys.modules.keys()))
flipkit.ConfigurationError
print(sorted(heavy & sys.modules.keys()))
from flipkit import plugins
assert "random" in plugins.names("maskers"), plugins.names("maskers")
print(sorted(heavy & sys.modules.keys()))
import os
print(os.environ["KERAS_BACKEND"])
"""


def test_importing_flipkit_and_asking_for_names_imports_no_framework(fresh):
    found = fresh(LIGHT, KERAS_BACKEND=None, FLIPKIT_PLUGINS="", KERAS_HOME="/nonexistent")
    assert found.split("\n")[:4] == ["[]", "[]", "[]", "jax"]


def test_the_backend_a_user_chose_stays(fresh, tmp_path):
    code = "import flipkit, os; print(os.environ.get('KERAS_BACKEND'))"
    assert fresh(code, KERAS_BACKEND="torch").strip() == "torch"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert fresh(code, KERAS_BACKEND=None, KERAS_HOME=str(tmp_path)).strip() == "None"
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}')  # Keras's own default
    assert fresh(code, KERAS_BACKEND=None, KERAS_HOME=str(tmp_path)).strip() == "jax"


def test_every_public_name_resolves():
    for name in flipkit.__all__:
        assert getattr(flipkit, name) is not None, name
    assert set(dir(flipkit)) == set(flipkit.__all__)


def test_public_names_are_sorted_and_none_is_twice():
    assert list(flipkit.__all__) == sorted(set(flipkit.__all__))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Flip'"):
        _ = flipkit.Flip
    assert not hasattr(flipkit, "nothing")


def test_type_checkers_see_every_public_name():
    tree = ast.parse((ROOT / "flipkit" / "__init__.pyi").read_text())
    seen = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name for name in flipkit.__all__ if not name.startswith("__")}
