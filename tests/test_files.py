"""Files are written whole or not at all."""

import contextlib
import json
import multiprocessing
import pathlib
import re

import pytest

from flipkit import files

ROOT = pathlib.Path(__file__).parents[1]


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "model.keras"
    with files.whole(target) as part:
        assert part.parent == target.parent
        assert part.suffix == ".keras"
        part.write_text("a")
        assert not target.exists()
    assert target.read_text() == "a"
    assert [*target.parent.iterdir()] == [target]


def test_an_error_leaves_the_file_before_and_nothing_else(tmp_path):
    target = tmp_path / "run.json"
    files.write(target, "before")
    with contextlib.suppress(ZeroDivisionError), files.whole(target) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "before"
    assert [*tmp_path.iterdir()] == [target]


def test_a_folder_is_written_whole_too(tmp_path):
    with files.whole(tmp_path / "tokenizer") as part:
        part.mkdir()
        (part / "vocabulary.txt").write_text("a")
    assert (tmp_path / "tokenizer" / "vocabulary.txt").read_text() == "a"
    with contextlib.suppress(ZeroDivisionError), files.whole(tmp_path / "other") as part:
        part.mkdir()
        raise ZeroDivisionError
    assert {p.name for p in tmp_path.iterdir()} == {"tokenizer"}


def _writes(path, text):
    for _ in range(50):
        files.write(path, text)


def test_processes_that_write_one_file_leave_one_of_theirs(tmp_path):
    texts = ["a" * 50_000, "b" * 50_000]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writes, args=(tmp_path / "x", text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "x").read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1, "ü"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, "ü"]}
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert files.read_json(tmp_path / "b.json") == files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("path", sorted((ROOT / "flipkit").rglob("*.py")), ids=lambda p: p.stem)
def test_no_other_module_renames_files(path):
    if path != ROOT / "flipkit" / "files.py":
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"os\.(replace|rename|fsync)\(|\.rename\(", text.replace("keras_inside.rename(", "")
        )
