import pickle
import re

import flipkit_picture_folders as plugin
import pytest
from absl import logging
from flipkit_picture_folders import PictureFolders
from PIL import Image

import flipkit
from flipkit import testing

FILES = {
    "b.png": "a grey square\n\n a square of grey \n",
    "a/b.jpg": "ein Bär",
    "a/c.PNG": "\ufeffmarked",
    "z.webp": "the last",
}


def fill(folder, files=FILES):
    """Makes pictures, and a text beside each."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "grey").save(path)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pictures"))


NAMES = [
    pytest.param(check.name, marks=pytest.mark.slow if check.slow else ())
    for check in testing.check_dataset(PictureFolders)
]


@pytest.mark.parametrize("name", NAMES)
def test_it_does_what_a_dataset_must(name, filled):
    checks = {c.name: c for c in testing.check_dataset(lambda: PictureFolders(filled))}
    checks[name]()


def test_pictures_come_in_the_order_of_their_paths_with_a_caption_per_line(folder):
    data = PictureFolders(folder)
    samples = [data[i] for i in range(len(data))]
    assert [sample["id"] for sample in samples] == ["a/b.jpg", "a/c.PNG", "b.png", "z.webp"]
    texts = [["ein Bär"], ["marked"], ["a grey square", "a square of grey"], ["the last"]]
    assert [sample["texts"] for sample in samples] == texts
    assert samples[2]["image"] == (folder / "b.png").read_bytes()


def test_whatever_flipkit_decodes_is_a_picture_and_names_may_have_dots(tmp_path):
    names = ["a 2023.05.01.tif", "b.v2.tiff", "c.avif"]
    for name in names:
        tmp_path.joinpath(name).write_bytes(b"not opened")
        tmp_path.joinpath(name).with_suffix(".txt").write_text(name)
    data = PictureFolders(tmp_path)
    assert [(data[i]["id"], data.texts(i)) for i in range(len(data))] == [(n, [n]) for n in names]


def test_what_is_hidden_or_no_picture_is_left_out(folder):
    fill(folder, {".hidden/d.png": "d", "a/._b.jpg": "a shadow of b"})
    folder.joinpath("notes.md").write_text("not a picture")
    assert len(PictureFolders(folder)) == 4


def test_pictures_without_a_text_are_counted_and_told(folder, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: told.append(message % values))
    folder.joinpath("a/c.txt").unlink()
    data = PictureFolders(folder)
    assert [data[i]["id"] for i in range(len(data))] == ["a/b.jpg", "b.png", "z.webp"]
    left_out = "have no text and are left out; the first is 'a/c.PNG'."
    assert told == [f"1 of 4 pictures in {str(folder)!r} {left_out}"]


def test_the_list_of_pictures_travels_in_the_pickle(folder):
    data = PictureFolders(folder)
    length = len(data)
    fill(folder, {"new.png": "too late"})
    assert len(pickle.loads(pickle.dumps(data))) == length


def test_the_text_is_told_without_the_picture(folder):
    data = PictureFolders(folder)
    assert len(data) == 4
    folder.joinpath("b.png").unlink()
    assert data.texts(2) == ["a grey square", "a square of grey"]
    with pytest.raises(flipkit.BadSample, match=r"b\.png can't be read: No such file"):
        data[2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b" \n\n", "z.txt is empty: expected a caption per line"),
        (b"\xff\xfe", "z.txt is no UTF-8 text"),
    ],
)
def test_a_bad_text_keeps_its_place_and_is_told(folder, text, told):
    folder.joinpath("z.txt").write_bytes(text)
    data = PictureFolders(folder)
    assert len(data) == 4
    with pytest.raises(flipkit.BadSample, match=told):
        data[3]


def test_a_feed_replaces_a_bad_picture_and_names_it(folder):
    folder.joinpath("b.png").write_bytes(b"half a picture")
    text = flipkit.TextTransformer(259, 6, dim=16, depth=1, heads=2)
    image = flipkit.ViT(8, 4, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, tokenizer="bytes", dim=8)
    batches = flipkit.Feed(crop=None, bad_limit=0.5).open(PictureFolders(folder), model, 4)
    assert batches.batch(0)["image"].shape == (4, 8, 8, 3)
    ((_, index, reason),) = batches.rejects
    assert index == 2
    assert reason.startswith("b.png: ")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    for path in (None, str(tmp_path / "absent")):
        with pytest.raises(flipkit.DataError, match=re.escape(f"Received: {path!r}")):
            len(PictureFolders(path))


def test_a_folder_without_pictures_or_texts_is_refused(tmp_path):
    with pytest.raises(flipkit.DataError, match=r"Received: 0 pictures$"):
        len(PictureFolders(tmp_path))
    fill(tmp_path, {"one.png": "text"}).joinpath("one.txt").unlink()
    with pytest.raises(flipkit.DataError, match=r"Received: 1 pictures, the first is 'one\.png'"):
        len(PictureFolders(tmp_path))


@pytest.fixture
def installed(monkeypatch):
    """The plugin, whether an entry point names it or not."""
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    flipkit.plugins.reset()
    flipkit.plugins.register(plugin, name="flipkit-picture-folders")
    yield
    flipkit.plugins.reset()


def test_a_run_takes_it_by_name_and_its_folder_by_path(installed, folder):
    text = flipkit.TextTransformer(259, 6, dim=16, depth=1, heads=2)
    image = flipkit.ViT(8, 4, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(image, text, tokenizer="bytes", dim=8)
    run = flipkit.Run(model, phases=[flipkit.Phase(8, 4, flipkit.Constant(1e-3))])
    run = run.with_overrides({"data": "picture_folders", "data.path": str(folder)})
    assert run.count_data() == 4
    assert run.start().built
