"""Datasets: tar shards read in place, and captioned shapes."""

import collections
import contextlib
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import tarfile
from concurrent import futures

import numpy as np
import pytest

from flipkit import datasets
from flipkit.datasets import CaptionedShapes, Dataset, ImageTextShards, captioned_shapes, shards
from flipkit.errors import BadSample, ConfigurationError, DataError, UnknownName

SHARED = pathlib.Path(__file__).parents[2] / "shared"
EMOJI = SHARED / "data" / "emoji"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An index cache of each test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FLIPKIT_CACHE", str(folder))
    return folder


def write_tar(path, members, **options):
    """A tar with `members`, pairs of a name and bytes."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def sample(key, number=0):
    """Three members: an image of a few bytes, a caption, and a json with more."""
    meta = {"caption": f"json {number}", "keywords": ["one", "two"], "label": number}
    return [
        (f"{key}.png", b"image %d" % number),
        (f"{key}.txt", b"caption %d" % number),
        (f"{key}.json", json.dumps(meta).encode()),
    ]


def only(path, *members, **options):
    """The dataset of one shard with `members`."""
    return ImageTextShards(write_tar(path / "a.tar", members), **options)


# Shards


def test_a_sample_is_the_members_that_share_a_key(tmp_path):
    data = only(tmp_path, *sample("b", 7), *sample("sub/a", 8))
    assert len(data) == 2
    assert data[0] == {
        "image": b"image 7",
        "texts": ["caption 7"],
        "id": "a.tar:b",
        "meta": {"caption": "json 7", "keywords": ["one", "two"], "label": 7},
        "label": 7,
    }
    assert data[1]["id"] == "a.tar:sub/a"
    assert [s["label"] for s in data] == [7, 8]
    with pytest.raises(IndexError):
        data[2]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    members = [*sample("a", 1), *sample("b", 2), *sample("c", 3)]
    random.Random(0).shuffle(members)
    data = only(tmp_path, *members)
    assert {s["id"]: s["image"] for s in data} == {
        "a.tar:a": b"image 1",
        "a.tar:b": b"image 2",
        "a.tar:c": b"image 3",
    }


def test_shards_follow_each_other_in_the_order_of_their_names(tmp_path):
    for shard in (2, 0, 1):
        members = [m for i in range(shard + 1) for m in sample(f"{shard}{i}", 10 * shard + i)]
        write_tar(tmp_path / f"{shard}.tar", members)
    data = ImageTextShards(f"{tmp_path}/*.tar")
    assert [s["label"] for s in data] == [0, 10, 11, 20, 21, 22]


def test_texts_are_the_caption_then_the_fields_without_repeats(tmp_path):
    meta = {"caption": "json", "captions": ["txt", "second"], "name": "third", "n": 3, "no": None}
    members = [("a.jpg", b"x"), ("a.txt", b"txt\n"), ("a.json", json.dumps(meta).encode())]
    assert only(tmp_path, *members).texts(0) == ["txt", "second"]
    fields = ("name", "n", "no", "missing", "captions")
    assert only(tmp_path, *members, text_fields=fields).texts(0) == ["txt", "third", "second"]
    assert only(tmp_path, *members, text_fields="name").texts(0) == ["txt", "third"]
    assert only(tmp_path, *members, text_fields=()).texts(0) == ["txt"]
    assert only(tmp_path, members[0], members[2]).texts(0) == ["json", "txt", "second"]


def test_a_sample_without_json_has_no_meta_and_no_label(tmp_path):
    [only_one] = only(tmp_path, ("a.webp", b"x"), ("a.txt", b"y"))
    assert only_one == {"image": b"x", "texts": ["y"], "id": "a.tar:a", "meta": {}}


def test_extensions_begin_at_the_first_dot_and_know_no_case(tmp_path):
    members = [("a.JPG", b"x"), ("a.seg.png", b"no"), ("a.txt", b"y"), ("._a.jpg", b"no")]
    data = only(tmp_path, *members, ("README", b"no"), ("a.cls", b"3"))
    assert len(data) == 1
    assert data[0]["image"] == b"x"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("k.txt", b"y")], "no image"),
        ([("k.jpg", b"x")], "no text"),
        ([("k.jpg", b"x"), ("k.txt", b" \n")], "no text"),
        ([("k.jpg", b"x"), ("k.json", b'{"caption": 3}')], "caption, captions"),
        ([("k.jpg", b"x"), ("k.txt", b"\xff\xfe")], "utf-8"),
        ([("k.jpg", b"x"), ("k.txt", b"y"), ("k.json", b"{")], "unreadable"),
        ([("k.jpg", b"x"), ("k.txt", b"y"), ("k.json", b"[1]")], "an object"),
        ([("k.jpg", b"x"), ("k.json", b'{"caption": "\\ud800"}')], "surrogates"),
        ([("k.jpg", b"x"), ("k.json", b"[" * 100_000)], "unreadable"),
    ],
)
def test_a_bad_sample_keeps_its_place_and_is_named(tmp_path, members, told):
    data = only(tmp_path, *sample("a", 1), *members, *sample("z", 2))
    assert len(data) == 3
    with pytest.raises(BadSample, match=r"a\.tar:k") as failure:
        data[1]
    assert told in str(failure.value)
    assert data[2]["label"] == 2


def test_texts_do_not_need_the_image(tmp_path):
    assert only(tmp_path, ("k.txt", b"y")).texts(0) == ["y"]


def test_constructing_touches_no_file_and_config_is_complete():
    data = ImageTextShards(["/nowhere/{0..3}.tar", "x.tar"], text_fields=("captions", "keywords"))
    again = ImageTextShards.from_config(data.get_config())
    assert again.get_config() == data.get_config()
    assert again.path == data.path
    assert again.text_fields == data.text_fields


def test_nothing_is_written_beside_the_shards(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = only(tmp_path, *sample("../out", 1), *sample("/tmp/abs", 2), *sample("a", 3))
    assert [s["label"] for s in data] == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
    assert not (tmp_path.parent / "out.png").exists()
    assert [p.suffix for p in (cache / "index").iterdir()] == [".npy"]


def test_only_regular_members_count(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, content in sample("a"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    [only_one] = ImageTextShards(str(path))
    assert only_one["image"] == b"image 0"


def test_of_two_members_of_a_kind_the_first_counts(tmp_path):
    [only_one] = only(tmp_path, *sample("a", 1), *sample("a", 2))
    assert only_one["image"] == b"image 1"


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_layout_is_read(tmp_path, layout):
    key = "long" * 30 + "/ключ"
    path = write_tar(tmp_path / "a.tar", sample(key, 5), format=layout)
    [only_one] = ImageTextShards(path)
    assert only_one["id"] == f"a.tar:{key}"
    assert only_one["label"] == 5


def test_an_index_is_built_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    built = []
    scan = shards.scan
    monkeypatch.setattr(shards, "scan", lambda shard: built.append(shard.path) or scan(shard))
    path = write_tar(tmp_path / "a.tar", sample("a"))
    for _ in range(2):
        assert ImageTextShards(path)[0]["id"] == "a.tar:a"
    assert built == [path]
    write_tar(path, sample("other") + sample("b"))
    assert [s["id"] for s in ImageTextShards(path)] == ["a.tar:other", "a.tar:b"]
    assert built == [path, path]


def test_a_damaged_index_is_built_again(tmp_path, cache):
    path = write_tar(tmp_path / "a.tar", sample("a", 4))
    assert len(ImageTextShards(path)) == 1
    [index] = (cache / "index").iterdir()
    whole = index.read_bytes()
    for rest in (b"", whole[:50], whole[:-3], b"no index at all"):
        index.write_bytes(rest)
        shards._open.cache_clear()
        assert ImageTextShards(path)[0]["label"] == 4
        assert index.read_bytes() == whole


def test_an_index_that_cannot_be_saved_stays_in_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLIPKIT_CACHE", str(tmp_path / "file"))
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", sample(name))
    built = []
    scan = shards.scan
    monkeypatch.setattr(shards, "scan", lambda shard: built.append(shard.path) or scan(shard))
    with caplog.at_level("WARNING", "absl"):
        data = ImageTextShards(f"{tmp_path}/[ab].tar")
        for _ in range(2):
            shards._open.cache_clear()
            assert [s["id"] for s in data] == ["a.tar:a", "b.tar:b"]
    assert len(built) == 2
    assert [record.message for record in caplog.records if "stay in memory" in record.message]
    assert len(caplog.records) == 1


def test_a_pickled_dataset_reads_the_same_samples(tmp_path):
    data = only(tmp_path, *sample("a", 1), *sample("b", 2))
    unopened = pickle.loads(pickle.dumps(data))
    expected = list(data)
    assert list(unopened) == expected
    assert list(pickle.loads(pickle.dumps(data))) == expected


def test_few_files_stay_open_and_threads_may_share_them(tmp_path):
    for number in range(100):
        write_tar(tmp_path / f"{number:03d}.tar", sample("a", number))
    data = ImageTextShards(f"{tmp_path}/*.tar")
    order = [random.Random(0).randrange(100) for _ in range(1000)]
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: data[i], order))
    assert [s["label"] for s in found] == order
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in _open_files()]
    assert 1 <= sum(name.startswith(str(tmp_path)) for name in held) <= 64


def _open_files():
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc, to see which files are open")
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]


def test_no_path_tells_what_to_set():
    for nothing in (None, "", []):
        with pytest.raises(
            DataError, match=r"No data to train on: set data.path='/data/laion400m/"
        ):
            len(ImageTextShards(nothing))


def test_a_pattern_that_matches_nothing_tells_what_there_is(tmp_path):
    write_tar(tmp_path / "train-00000.tar", sample("a"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as failure:
        len(ImageTextShards(f"{tmp_path}/test-*.tar"))
    assert f"'{tmp_path}/test-*.tar'" in str(failure.value)
    assert "exists and holds train-00000.tar." in str(failure.value)
    with pytest.raises(DataError) as failure:
        len(ImageTextShards(f"{tmp_path}/no/such/*.tar"))
    assert f"Folder '{tmp_path}/no/such' does not; '{tmp_path}' does" in str(failure.value)
    with pytest.raises(DataError, match="this machine"):
        len(ImageTextShards("gs://bucket/*.tar"))
    with pytest.raises(DataError, match=r"folder: say '.*/\*.tar'"):
        len(ImageTextShards(str(tmp_path)))


def test_a_missing_shard_of_a_brace_range_is_named(tmp_path):
    for number in (0, 2):
        write_tar(tmp_path / f"{number:05d}.tar", sample("a"))
    with pytest.raises(DataError, match=r"1 names are missing, the first is '.*/00001.tar'"):
        len(ImageTextShards(f"{tmp_path}/{{00000..00002}}.tar"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("x{a,b{1,2}}", ["xa", "xb1", "xa", "xb2"]),
        ("{,x}y", ["y", "xy"]),
        ("{a}{}", ["{a}{}"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, names):
    assert shards.expand_braces(pattern) == names


def test_patterns_may_be_many_and_repeat_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", sample(name))
    data = ImageTextShards(["~/{c,a}.tar", f"{tmp_path}/*.tar"])
    assert [s["id"] for s in data] == ["c.tar:c", "a.tar:a", "b.tar:b"]


def test_a_shard_cut_at_any_byte_is_refused(tmp_path):
    path = pathlib.Path(write_tar(tmp_path / "cut.tar", sample("a") + sample("b")))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # of the last member
    for size in range(0, end + 512, 128):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.tar"):
            len(ImageTextShards(str(path)))
    path.write_bytes(whole[: end + 512])  # one block of the end mark is enough
    assert len(ImageTextShards(str(path))) == 2


def test_a_cut_shard_tells_member_offset_and_sizes(tmp_path):
    path = write_tar(tmp_path / "cut.tar", [*sample("a"), ("b.jpg", bytes(5000))])
    os.truncate(path, 3 * 1024 + 512 + 100)
    told = r"cut.tar is cut short: expected 5000 bytes of member 'b.jpg' at byte 3584, received 100"
    with pytest.raises(DataError, match=told):
        len(ImageTextShards(path))


def test_a_damaged_header_does_not_end_a_shard_silently(tmp_path):
    path = pathlib.Path(write_tar(tmp_path / "a.tar", sample("a") + sample("b")))
    whole = bytearray(path.read_bytes())
    whole[3 * 1024 + 5] ^= 1  # in the header of the fourth member
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"damaged after member 'a.json'"):
        len(ImageTextShards(str(path)))


def test_what_is_no_plain_tar_is_told_apart(tmp_path):
    page = tmp_path / "page.tar"
    page.write_bytes(b"<!DOCTYPE html>" + bytes(1000))
    with pytest.raises(DataError, match=r"page.tar is no tar file.*<!DOCTYPE"):
        len(ImageTextShards(str(page)))
    for mode, name in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        path = tmp_path / f"{name}.tar"
        tarfile.open(path, mode).close()
        with pytest.raises(DataError, match=rf"is compressed \({name}\)"):
            len(ImageTextShards(str(path)))


def test_shards_without_any_sample_are_refused(tmp_path):
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="no member at all"):
        len(ImageTextShards(f"{tmp_path}/*.tar"))
    write_tar(tmp_path / "a.tar", [("notes.md", b"x")])
    with pytest.raises(DataError, match=r"2 shards hold no sample.*notes.md"):
        len(ImageTextShards(f"{tmp_path}/*.tar"))
    write_tar(tmp_path / "b.tar", sample("b", 3))
    assert [s["label"] for s in ImageTextShards(f"{tmp_path}/*.tar")] == [3]


def test_a_shard_that_changes_while_in_use_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("a") + sample("b"))
    data = ImageTextShards(path)
    assert len(data) == 2
    write_tar(path, sample("only"))
    with pytest.raises(DataError, match="changed while it was in use"):
        data[0]


def test_an_open_shard_that_loses_its_end_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("a") + sample("b"))
    data = ImageTextShards(path)
    assert data[0]["label"] == 0
    os.truncate(path, 1024)
    with pytest.raises(DataError, match="expected 9 bytes"):
        data[1]


def test_random_damage_never_surprises(tmp_path):
    rng = random.Random(0)
    whole = pathlib.Path(write_tar(tmp_path / "whole.tar", sample("a") + sample("b"))).read_bytes()
    refused = 0
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(6 * 1024)] = rng.randrange(256)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(damaged)
        try:
            found = [outcome(ImageTextShards(str(path)), i) for i in range(2)]
        except DataError as error:
            refused += path.name in str(error)
            continue
        assert all(path.name in str(one) for one in found)
    assert 50 < refused < 200


def outcome(data, i):
    """The id of sample `i`, or how it was refused, or where the data is if it has fewer."""
    try:
        return data[i]["id"]
    except BadSample as error:
        return error
    except IndexError:
        return data.path


@pytest.mark.skipif(not EMOJI.exists(), reason="needs ../shared/data/emoji")
def test_emoji_are_read_whole():
    data = ImageTextShards(f"{EMOJI}/train-{{00000..00002}}.tar", text_fields=("keywords",))
    assert len(data) == 4282
    for i in range(0, len(data), 97):
        found = data[i]
        assert found["texts"][0] == found["meta"]["caption"]
        assert set(found["meta"]["keywords"]) <= set(found["texts"])
        assert found["image"].startswith(b"\x89PNG")
        assert found["label"] == found["meta"]["label"]


# Datasets by name


def test_get_takes_names_patterns_objects_and_configs(tmp_path):
    assert isinstance(datasets.get("captioned_shapes"), CaptionedShapes)
    assert isinstance(datasets.get("image_text_shards"), ImageTextShards)
    for pattern in ("/data/a", "*", "a{0..1}", "a.tar"):
        assert datasets.get(pattern).path == pattern
    data = CaptionedShapes(size=3)
    assert datasets.get(data) is data
    assert datasets.get(None) is None
    assert isinstance(datasets.get(CaptionedShapes), CaptionedShapes)
    with pytest.raises(UnknownName, match="captioned_shapes"):
        datasets.get("captioned_shape")
    with pytest.raises(ConfigurationError, match="datasets"):
        datasets.get(["not", "a", "dataset"])


def test_datasets_survive_their_config():
    from flipkit.registry import deserialize, serialize

    for data in (CaptionedShapes("test", size=7, seed=2), ImageTextShards("a.tar", ("keywords",))):
        config = json.loads(json.dumps(serialize(data)))
        again = deserialize(config)
        assert type(again) is type(data)
        assert again.get_config() == data.get_config()


def test_a_third_party_writes_two_methods():
    class Two(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return {"image": b"", "texts": [f"text {i}"], "id": str(i)}

    assert datasets.get(Two).texts(1) == ["text 1"]
    with pytest.raises(NotImplementedError, match="Dataset has no __len__"):
        len(Dataset())


# Captioned shapes


def test_shapes_are_pictures_with_three_differing_captions():
    data = CaptionedShapes()
    assert len(data) == 100_000
    for i in range(50):
        found = data[i]
        assert found["image"].shape == (64, 64, 3)
        assert found["image"].dtype == np.uint8
        assert len(set(found["texts"])) == 3
        assert found["texts"] == data.texts(i)
    assert len({data[i]["id"] for i in range(50)}) == 50
    with pytest.raises(IndexError):
        data[100_000]


@pytest.mark.parametrize("image_size", [32, 33, 47, 96])
def test_shapes_fit_into_every_image_size(image_size):
    data = CaptionedShapes(image_size=image_size)
    assert all(data[i]["image"].shape == (image_size, image_size, 3) for i in range(300))


def test_shapes_are_the_same_in_every_process():
    code = """if True:
        import zlib
        from flipkit.datasets import CaptionedShapes
        for split in ("train", "test", "word_order", "attributes"):
            for i in (5, 0, 77):
                sample = CaptionedShapes(split)[i]
                print(sample["texts"], zlib.crc32(sample["image"].tobytes()))
        print(zlib.crc32(repr(CaptionedShapes().classnames()).encode()))
    """
    root = str(pathlib.Path(__file__).parents[1])
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(code, {})
    assert there == here.getvalue()
    assert len(there.splitlines()) == 13


def test_shapes_differ_with_seed_split_and_index():
    samples = [
        CaptionedShapes(split, seed=seed)[i]
        for split, seed, i in itertools.product(("train", "test"), (0, 1), (3, 515))
    ]
    images = {s["image"].tobytes() for s in samples}
    assert len(images) == len(samples)
    assert len({s["id"] for s in samples}) == len(samples)


def test_a_pickled_dataset_draws_the_same_shapes():
    data = CaptionedShapes(size=3, seed=4)
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[2]["image"], data[2]["image"])


def test_there_are_512_classes_of_which_96_are_held_out():
    names, split = CaptionedShapes("test").classnames().values()
    assert len(names) == len(set(names)) == len(split) == 512
    assert collections.Counter(split) == {"seen": 416, "held out": 96}
    assert "a small red circle" in names
    assert all((" of " in n or " above " in n or " below " in n) for n in names[128:])
    # No two classes are the same scene told from either side.
    scenes = captioned_shapes.classes()
    assert len(set(scenes)) == 512
    assert {relation for *_, relation, _ in scenes} == {None, "left", "above"}


WORDS = {
    **{"left": "left", "right": "right"},
    **{"above": "above", "over": "above", "top": "above"},
    **{"below": "below", "under": "below", "bottom": "below"},
}


def read(text):
    """What a caption says, by a reader of its own: (first thing, "left" or "above", second), or
    None if it is about one thing."""
    words = text.split()
    things = [pair for pair in itertools.pairwise(words) if pair[1] in captioned_shapes.SHAPES]
    places = [n for n, word in enumerate(words) if word in WORDS]
    if len(things) == 1:
        return None
    a, b = things
    if places[0] < words.index(a[1]):  # "left of B there is A"
        a, b = b, a
    relation = WORDS[words[places[0]]]  # of two, as in "A on the left and B on the right", A's
    if relation in ("right", "below"):
        return b, {"right": "left", "below": "above"}[relation], a
    return a, relation, b


def test_every_caption_is_true_of_its_scene():
    for split in ("train", "test"):
        data = CaptionedShapes(split, size=2_000)
        for i in range(2_000):
            scene = data.scene(i)
            for text in data.texts(i):
                if scene.relation is None:
                    [thing] = scene.things
                    assert f"{thing.colour} {thing.shape}" in text
                else:
                    a, b = ((t.colour, t.shape) for t in scene.things)
                    assert read(text) == (a, scene.relation, b)


def test_held_out_classes_are_never_in_training():
    names, split = CaptionedShapes("test").classnames().values()
    held_out = {read(name) for name, part in zip(names, split, strict=True) if part == "held out"}
    assert len(held_out) == 96
    data = CaptionedShapes("train")
    told = {read(text) for i in range(20_000) for text in data.texts(i)}
    assert len(told) > 4_000
    assert not told & held_out
    assert told & {
        read(n) for n, part in zip(names[128:], split[128:], strict=True) if part == "seen"
    }


def test_everything_a_held_out_scene_is_made_of_occurs_in_training():
    data = CaptionedShapes("train")
    scenes = [data.scene(i) for i in range(20_000)]
    places = {
        (place, scene.relation, thing.colour, thing.shape)
        for scene in scenes
        for place, thing in enumerate(scene.things)
    }
    things = len(captioned_shapes.COLOURS) * len(captioned_shapes.SHAPES)
    assert len(places) == things * 5  # alone, left, right, above, below
    sizes = {(t.size, t.colour, t.shape) for s in scenes if not s.relation for t in s.things}
    assert len(sizes) == things * 2


def test_test_scenes_show_their_class_and_cover_all_evenly():
    data = CaptionedShapes("test")
    classes = captioned_shapes.classes()
    labels = [data[i]["label"] for i in range(0, len(data), 5)]
    assert collections.Counter(labels) == dict.fromkeys(range(512), 1)
    assert len(data) == 5 * 512
    for i in range(len(data)):
        scene, of_class = data.scene(i), classes[i % 512]
        assert scene.relation == of_class.relation
        for thing, expected in zip(scene.things, of_class.things, strict=True):
            assert thing[:2] == expected[:2]
            assert expected.size in (None, thing.size)


def test_pictures_show_what_the_scene_says():
    data = CaptionedShapes("test")
    for i in range(0, len(data), 7):
        scene, image = data.scene(i), data[i]["image"].astype(float)
        centres, areas = [], []
        for thing in scene.things:
            if len({t.colour for t in scene.things}) < len(scene.things):
                break
            colour = np.array(captioned_shapes.COLOURS[thing.colour], float)
            y, x = np.nonzero(abs(image - colour).max(-1) < 26)
            centres.append((x.mean(), y.mean()))
            areas.append(len(x))
        else:
            assert min(areas) > 20
            if scene.relation:
                (ax, ay), (bx, by) = centres
                along, across = (
                    (bx - ax, by - ay) if scene.relation == "left" else (by - ay, bx - ax)
                )
                assert along > 12
                assert abs(across) < 0.6 * along


def test_every_shape_is_told_from_the_others_by_its_outline():
    stamps = {s: captioned_shapes.stamp(s, 28, 0)[..., 0] / 255.0 for s in captioned_shapes.SHAPES}
    for one, other in itertools.combinations(stamps, 2):
        assert abs(stamps[one] - stamps[other]).sum() / stamps[one].sum() > 0.15
    for stamp in stamps.values():
        assert stamp.max() == 1
        assert np.allclose(stamp, stamp[:, ::-1], atol=0.1)  # upright shapes are symmetric
    rows = stamps["triangle"].sum(1)
    assert rows[:10].sum() < rows[-10:].sum()  # points up


@pytest.mark.parametrize("split", ["word_order", "attributes"])
def test_a_foil_has_the_words_of_the_true_caption_and_is_untrue(split):
    data = CaptionedShapes(split)
    assert len(data) == 1_000
    for i in range(len(data)):
        true, foil = data.texts(i)
        assert true != foil
        assert collections.Counter(true.split()) == collections.Counter(foil.split())
        a, b = ((t.colour, t.shape) for t in data.scene(i).things)
        assert read(true) == (a, data.scene(i).relation, b)
        first, relation, second = read(foil)
        assert relation == data.scene(i).relation
        if split == "word_order":
            assert (first, second) == (b, a)
        else:
            assert (first, second) == ((b[0], a[1]), (a[0], b[1]))
    assert data[0]["texts"] == data.texts(0)


def test_wrong_settings_of_shapes_are_told():
    with pytest.raises(ConfigurationError, match="Did you mean 'word_order'"):
        CaptionedShapes("wordorder")
    with pytest.raises(ConfigurationError, match="size=0"):
        CaptionedShapes(size=0)
    with pytest.raises(ConfigurationError, match="image_size=16"):
        CaptionedShapes(image_size=16)


def test_labels_come_from_any_field_and_as_names(tmp_path):
    members = [
        (f"{i}.{kind}", content)
        for i, group in enumerate(["food", "flags", "food"])
        for kind, content in (
            ("jpg", b"picture"),
            ("txt", b"text"),
            ("json", json.dumps({"label": 7, "group": group, "number": i}).encode()),
        )
    ]
    write_tar(tmp_path / "a.tar", members)
    names = tmp_path / "names.txt"
    names.write_text("flags\nfood\n")

    def labels(**settings):
        data = datasets.ImageTextShards(tmp_path / "a.tar", **settings)
        return [data[i].get("label") for i in range(3)]

    assert labels() == [7, 7, 7]
    assert labels(label_field="number") == [0, 1, 2]
    assert labels(label_field="group") == [None, None, None]
    assert labels(label_field="group", classes=["flags", "food"]) == [1, 0, 1]
    assert labels(label_field="group", classes=names) == [1, 0, 1]
    data = datasets.ImageTextShards(tmp_path / "a.tar", label_field="group", classes=str(names))
    assert data.classnames() == {"names": ["flags", "food"]}
    assert type(data).from_config(data.get_config()).classnames() == data.classnames()
    with pytest.raises(BadSample, match=r"a.tar:1 has an unknown class: group='flags'"):
        datasets.ImageTextShards(tmp_path / "a.tar", label_field="group", classes=["food"])[1]
    with pytest.raises(DataError, match=r"class per line. Received: .*none.txt"):
        datasets.ImageTextShards(label_field="group", classes="none.txt").classnames()
    with pytest.raises(ConfigurationError, match="set classnames="):
        datasets.ImageTextShards(tmp_path / "a.tar").classnames()
