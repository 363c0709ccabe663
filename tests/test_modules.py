"""Recipes and other files that are imported by their path."""

import importlib
import pickle
import queue
import sys

import pytest

import flipkit
from flipkit import recipe
from flipkit.plugins import modules

RECIPE = '''"""Mine."""
import flipkit
from common import WIDTH


@flipkit.registry.register
class {cls}(flipkit.CaptionedShapes):
    pass


def recipe(pairs=16):
    image = flipkit.ViT(image_size=32, patch_size=8, dim=WIDTH, depth=1, heads=2)
    text = flipkit.TextTransformer(vocab=300, length=16, dim=WIDTH, depth=1, heads=2)
    model = flipkit.FLIP(image, text, dim=8, tokenizer="bytes")
    return flipkit.Run(model, data={cls}("test", 8), phases=[flipkit.Phase(pairs, 8)])
'''


@pytest.fixture
def folders(tmp_path):
    """Two folders, each with a recipe `mine.py`, one `queue.py`, and a neighbour that they import."""
    for name, width in (("a", 8), ("b", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "common.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / name / "mine.py").write_text(RECIPE.format(cls=f"Mine{name.upper()}"))
    (tmp_path / "a" / "queue.py").write_text(RECIPE.format(cls="Queue"))
    return tmp_path


def test_two_recipes_of_one_name_and_one_called_queue_work_in_one_process(folders):
    functions = [recipe.load(folders / place) for place in ("a/mine.py", "b/mine.py", "a/queue.py")]
    widths = [recipe.make(function, {}).model.image.dim for function in functions]
    assert widths == [8, 16, 8]
    assert [recipe.summary(function) for function in functions] == ["Mine."] * 3
    for stem in ("mine", "common"):
        assert stem not in sys.modules
    assert sys.modules["queue"] is queue is importlib.import_module("queue")
    assert queue.Queue().empty()


def test_what_a_file_defines_can_be_pickled_and_run(folders):
    run = recipe.make(recipe.load(folders / "b" / "mine.py"), {})
    assert len(pickle.loads(pickle.dumps(run.data))) == 8
    assert int(run.start().step) == 2


def test_each_file_has_a_name_of_its_own(folders):
    made = [modules.from_file(folders / name / "mine.py") for name in ("a", "b")]
    assert len({module.__name__ for module in made}) == 2
    assert all(sys.modules[module.__name__] is module for module in made)
    assert isinstance(made[0].MineA("test", 8), flipkit.Dataset)


def test_a_file_that_raises_leaves_the_path_as_it_was(folders):
    (folders / "a" / "broken.py").write_text("import common\n1 / 0\n")
    before = [*sys.path]
    with pytest.raises(ZeroDivisionError):
        modules.from_file(folders / "a" / "broken.py")
    assert sys.path == before
    assert "common" not in sys.modules
