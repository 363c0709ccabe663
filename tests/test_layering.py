"""Which way the imports point: docs/architecture.md draws it, and the code does it."""

import ast
import functools
import pathlib
import re
import sys

import pytest

import flipkit

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "flipkit"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

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
    "commands",
    "distribution",
    "hosts",
    "layers",
    "losses",
    "models",
    "planning",
    "process",
    "profiling",
    "study",
    "testing",
}

KINDS = ("maskers", "encoders", "datasets", "schedules", "tokenizers", "optimizers", "losses")


def floors():
    """The diagram: sets of modules and packages, the highest floor first."""
    block = re.search(r"```text\n(.*?)```", ARCHITECTURE, re.DOTALL)[1]
    return [set(line.split()[1:]) for line in block.splitlines()]


def table():
    """{module or package: packages of others that it imports}."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| *(.*?) *\|$", ARCHITECTURE, re.MULTILINE)
    return {name: {p for p in packages.split(", ") if p} for name, packages in rows}


@functools.cache
def parts():
    """{module or package: its files}; `python -m flipkit.plugins` is a door in a package."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    for path in PACKAGE.glob("*/__init__.py"):
        files = path.parent.glob("*.py")
        found[path.parent.name] = [p for p in files if p.stem != "__main__"]
    return found


@functools.cache
def imports(path):
    """Every module that a file imports, inside functions too: "flipkit.models.flip", "keras", ..."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: an import from {'.' * node.level}"
            module = node.module or ""
            inside = module.partition(".")[0] == "flipkit"
            found += [f"{module}.{alias.name}" for alias in node.names] if inside else [module]
    return found


def packages(part):
    """What a part imports beside flipkit and the standard library."""
    names = {name.partition(".")[0] for path in parts()[part] for name in imports(path)}
    return names - sys.stdlib_module_names - {"flipkit"}


def used(part):
    """The other parts of flipkit that a part imports."""
    found = set()
    for path in parts()[part]:
        for name in imports(path):
            package, _, rest = name.partition(".")
            head = rest.partition(".")[0]
            if package == "flipkit" and head != "__version__":
                found.add(flipkit._HOMES.get(head, head).partition(".")[0])
    return found - {part}


def test_diagram_and_table_have_every_module_and_package_once():
    drawn = [name for floor in floors() for name in floor]
    assert sorted(drawn) == sorted(parts()) == sorted(table())


@pytest.mark.parametrize("part", parts())
def test_a_part_imports_the_packages_that_the_table_has(part):
    assert packages(part) == table()[part]


@pytest.mark.parametrize("part", parts())
def test_a_part_imports_from_lower_floors_alone(part):
    drawn = floors()
    (floor,) = (i for i, names in enumerate(drawn) if part in names)
    assert used(part) <= set().union(*drawn[floor + 1 :])


@pytest.mark.parametrize("part", [name for name, files in parts().items() if len(files) > 1])
def test_no_two_modules_of_a_package_import_each_other(part):
    stems = {path.stem for path in parts()[part]}
    order = {}

    def height(stem, below=()):
        assert stem not in below, f"a circle: {' -> '.join([*below, stem])}"
        if stem not in order:
            (path,) = (p for p in parts()[part] if p.stem == stem)
            inside = [n.split(".")[2:3] for n in imports(path) if n.startswith(f"flipkit.{part}.")]
            near = {names[0] for names in inside if names} & stems
            order[stem] = 1 + max((height(s, (*below, stem)) for s in near), default=0)
        return order[stem]

    for stem in stems - {"__init__"}:
        height(stem)


def test_kinds_import_no_other_kind():
    for kind in KINDS:
        assert not used(kind) & ({*KINDS} - {kind}), kind


def test_models_import_nothing_of_training_and_the_loop_no_description():
    assert not used("models") & {"training", "records", "feed", "evaluation", "recipe"}
    loop = [n for n in imports(PACKAGE / "training" / "loop.py") if "training" in n]
    assert not [name for name in loop if "description" in name]


def test_doors_are_three_statements():
    doors = floors()[0]
    files = [*(PACKAGE / f"{door}.py" for door in doors), PACKAGE / "plugins" / "__main__.py"]
    for path in files:
        doc, imported, started = ast.parse(path.read_text(encoding="utf-8")).body
        assert ast.unparse(imported) == "from flipkit.commands import shell"
        assert ast.unparse(started.body[0]).startswith("shell.start("), doc


def test_no_framework_but_keras_and_seldom_jax_is_imported():
    for part in parts():
        assert not packages(part) & FRAMEWORKS, part
        assert part in JAX or not packages(part) & {"jax", "jaxlib"}, part


def walks():
    """{title of a walk: its lines, (file, sentence)}."""
    text = ARCHITECTURE.partition("## Three walks")[2].partition("\n## ")[0]
    found = {}
    for title, lines in re.findall(r"\*\*(.*?)\*\*\n\n((?:\d+\. .*\n)+)", text):
        found[title] = re.findall(r"^\d+\. `([\w/]+\.py)`: (.*)$", lines, re.MULTILINE)
    return found


def test_there_are_three_walks_of_ten_lines_that_enter_each_file_once():
    assert [len(lines) for lines in walks().values()] == [10, 10, 10]
    for lines in walks().values():
        assert len({file for file, _ in lines}) == 10


@pytest.mark.parametrize("walk", walks())
def test_a_walk_names_what_is_in_its_files(walk):
    for file, sentence in walks()[walk]:
        path = ROOT / file if file.startswith("recipes/") else PACKAGE / file
        names = {
            node.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        }
        told = set(re.findall(r"`(?:\w+\.)?(\w+)(?:\[i\])?`", sentence))
        own = told - {"name", "value", "fit", "batch_size", "run", "step"}
        assert own <= names, f"{file}: {own - names}"


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
