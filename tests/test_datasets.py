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
from absl import logging

from flipkit import datasets
from flipkit.datasets import (
    CaptionedShapes,
    Dataset,
    ImageTextShards,
    captioned_shapes,
    patterns,
    tar_index,
)
from flipkit.datasets.dataset import label_of
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


@pytest.fixture
def told(monkeypatch):
    """The warnings."""
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    return messages


def test_what_is_no_part_of_a_sample_is_left_out_and_counted(tmp_path, told):
    members = [("a.JPG", b"x"), ("a.seg.png", b"no"), ("a.txt", b"y"), ("a.npy", b"not read")]
    strays = [("._a.jpg", b"no"), ("README", b"no"), ("b.npy", b"no"), ("info.v2.json", b"{}")]
    path = write_tar(tmp_path / "a.tar", [*members, ("a.png", b"second"), *strays])
    write_tar(tmp_path / "b.tar", sample("b"))
    for _ in range(2):  # the second time from the index that was kept
        data = ImageTextShards(f"{tmp_path}/*.tar")
        assert [s["id"] for s in data] == ["a.tar:a", "b.tar:b"]
        assert data[0]["image"] == b"x"
        assert told.pop().startswith("6 members of 1 of 2 shards are left out: they belong to no")
        assert not told
    assert tar_index.Shard(path).left_out == (6, "a.png")
    with tarfile.open(tmp_path / "b.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("folder.jpg"), None)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert len(ImageTextShards(f"{tmp_path}/b.tar")) == 2
    assert not told


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        (["IMG 2023.05.01 a", "IMG 2023.05.01 b", "plain"], 3),
        (["a/v1.5/model v1.5 car", "a/v1.5/model v1", "a/v1.5/model v1.5"], 3),
        (["22.05", "22", "x.y/22"], 3),
        (["cat", "cat.1", "cat.2", "dog."], 4),
        (["..", ".hidden.b"], 0),
    ],
)
def test_a_name_with_dots_is_a_sample_if_it_is_whole(tmp_path, told, names, samples):
    members = [m for name in names for m in sample(name)]
    data = only(tmp_path, *members, *sample("last"))
    assert [s["id"] for s in data] == [f"a.tar:{name}" for name in [*names[:samples], "last"]]
    assert len(told) == (samples < len(names))


def test_a_part_of_a_sample_is_none_of_its_own_without_a_text(tmp_path, told):
    parts = [("a.left.png", b"x"), ("a.left.json", b'{"caption": "a part"}'), ("a.b.c.jpg", b"x")]
    data = only(tmp_path, *parts, *sample("a"), ("c.1.png", b"x"), ("c.1.json", b'{"label": 3}'))
    assert [s["id"] for s in data] == ["a.tar:a", "a.tar:c.1"]
    assert told[0].startswith("3 members of 1 of 1 shards")
    assert "'a.left.png' in " in told[0]


@pytest.mark.parametrize("extension", ["tif", "tiff", "avif", "webp", "GIF"])
def test_what_can_be_decoded_can_be_in_a_shard(tmp_path, extension):
    assert only(tmp_path, (f"a.{extension}", b"x"), ("a.txt", b"y"))[0]["image"] == b"x"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("k.txt", b"y")], "no image"),
        ([("k.jpg", b"x")], "no text"),
        ([("k.jpg", b"x"), ("k.txt", b" \n")], "no text"),
        ([("k.jpg", b"x"), ("k.json", b'{"caption": 3}')], "caption, captions, label"),
        ([("k.jpg", b"x"), ("k.json", b'{"caption": {"en": "a"}}')], "caption={'en': 'a'}"),
        (
            [("k.jpg", b"x"), ("k.txt", b" "), ("k.json", b'{"label": [3]}')],
            "empty .txt, label=[3]",
        ),
        ([("k.jpg", b"x"), ("k.cls", b"cat")], "no text and no label"),
        ([("k.cls", b"3")], "no image"),
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


@pytest.mark.parametrize(
    ("text", "caption", "expected"),
    [
        (None, ["one", "two"], ["one", "two", "more"]),
        (b"", "json", ["json", "more"]),
        (b" \n", ["json", None, " "], ["json", "more"]),
        (b"txt", ["one", "two"], ["txt", "more"]),
        (b"\xef\xbb\xbftxt\r\n", None, ["txt", "more"]),
        (b"\xef\xbb\xbf", "json", ["json", "more"]),
    ],
)
def test_the_caption_is_found_where_it_is(tmp_path, text, caption, expected):
    details = json.dumps({"caption": caption, "captions": ["more"]}).encode()
    members = [("a.jpg", b"x"), ("a.json", b"\xef\xbb\xbf" + details)]
    assert (
        only(tmp_path, *members, *([] if text is None else [("a.txt", text)])).texts(0) == expected
    )


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
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda shard: built.append(shard.path) or scan(shard))
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
        tar_index.opened.cache_clear()
        assert ImageTextShards(path)[0]["label"] == 4
        assert index.read_bytes() == whole


def test_an_index_that_cannot_be_saved_stays_in_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLIPKIT_CACHE", str(tmp_path / "file"))
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", sample(name))
    built = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda shard: built.append(shard.path) or scan(shard))
    with caplog.at_level("WARNING", "absl"):
        data = ImageTextShards(f"{tmp_path}/[ab].tar")
        for _ in range(2):
            tar_index.opened.cache_clear()
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
    with pytest.raises(DataError, match=r"folder: set '.*/\*.tar'"):
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
        ("{10..08}", ["10", "09", "08"]),
        ("{1..0}{1..1}", ["11", "01"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("x{a,b{1,2}}", ["xa", "xb1", "xa", "xb2"]),
        ("{,x}y", ["y", "xy"]),
        ("{a}{}", ["{a}{}"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, names):
    assert patterns.expand_braces(pattern) == names


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


def test_tars_behind_each_other_are_read_one_after_the_other(tmp_path, told):
    parts = [
        pathlib.Path(write_tar(tmp_path / f"{i}.part", members)).read_bytes()
        for i, members in enumerate([[], sample("a", 1), sample("a", 2) + sample("b", 3), []])
    ]
    path = tmp_path / "joined.tar"
    path.write_bytes(b"".join(parts) + bytes(1000))
    for _ in range(2):
        data = ImageTextShards(path)
        assert [s["image"] for s in data] == [b"image 1", b"image 2", b"image 3"]
        assert [s["id"] for s in data] == ["joined.tar:a", "joined.tar:a", "joined.tar:b"]
    assert not told
    for rest in (6 * 1024, 5 * 1024 + 100):  # of the third: without an end mark, within a header
        path.write_bytes(b"".join(parts[:2]) + parts[2][:rest])
        with pytest.raises(DataError, match=r"joined.tar is cut short"):
            len(ImageTextShards(path))


@pytest.mark.parametrize("padding", [0, 512, 700])
def test_what_follows_the_end_of_a_tar_is_no_rubbish(tmp_path, padding):
    whole = pathlib.Path(write_tar(tmp_path / "a.tar", sample("a"))).read_bytes()
    path = tmp_path / "b.tar"
    path.write_bytes(whole + bytes(padding))
    assert len(ImageTextShards(path)) == 1
    path.write_bytes(whole + bytes(padding) + b"\1" * 5000)
    place = len(whole) + padding // 512 * 512
    with pytest.raises(
        DataError, match=rf"b.tar .* end mark at byte {place} of {path.stat().st_size}"
    ):
        len(ImageTextShards(path))
    path.write_bytes(whole[:3072] + bytes(1024) + b"\1" * 2048)  # a hole in the middle
    with pytest.raises(DataError, match=r"end mark at byte 4096 of"):
        len(ImageTextShards(path))


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


def labelled(path, *values, **settings):
    """A shard with pictures whose `.json` holds the values as labels, and no texts."""
    members = [
        (f"{i}.{kind}", content)
        for i, value in enumerate(values)
        for kind, content in (("jpg", b"x"), ("json", json.dumps({"label": value}).encode()))
    ]
    return only(path, *members, **settings)


def test_labels_are_whole_numbers_however_they_are_written(tmp_path):
    data = labelled(tmp_path, 3, 3.0, "3", " 3.0", -1, "-1")
    assert [s["label"] for s in data] == [3, 3, 3, 3, -1, -1]
    assert all(type(s["label"]) is int for s in data)
    assert [s["texts"] for s in data] == [[]] * 6
    assert data.texts(0) == []
    no_labels = labelled(tmp_path, 0.5, float("nan"), "red", [3], None, True, "1" * 5000)
    for i in range(len(no_labels)):
        with pytest.raises(BadSample, match=f"a.tar:{i} has no text and no label.* label="):
            no_labels[i]


def test_a_class_is_a_name_or_else_an_index_of_one(tmp_path):
    data = labelled(tmp_path, "7", "3", "1", 1, "9", "cat", classes=["3", "7"])
    assert [data[i]["label"] for i in range(4)] == [1, 0, 1, 1]
    for i, value in ((4, "9"), (5, "cat")):
        with pytest.raises(BadSample, match=f"unknown class: label='{value}' is none of the 2"):
            data[i]


def test_the_cls_tells_the_class_that_the_json_does_not(tmp_path):
    members = [
        *[("a.jpg", b"x"), ("a.cls", b"3\n")],
        *[("b.jpg", b"x"), ("b.cls", b"dog"), ("b.txt", b"text")],
        *[("c.jpg", b"x"), ("c.cls", b"1"), ("c.json", b'{"label": 2}')],
        *[("d.jpg", b"x"), ("d.cls", b"1"), ("d.json", b'{"label": null, "cls": 4}')],
    ]
    data = only(tmp_path, *members)
    assert [s.get("label") for s in data] == [3, None, 2, 4]
    assert data[0] == {
        "image": b"x",
        "texts": [],
        "id": "a.tar:a",
        "meta": {"cls": "3"},
        "label": 3,
    }
    named = only(tmp_path, *members, classes=["cat", "dog", "bird", "fish", "cow"])
    assert [s["label"] for s in named] == [3, 1, 2, 4]


def test_classes_may_have_a_byte_order_mark_and_any_ends_of_lines(tmp_path):
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbfcat\r\n\r\ndog\r")
    data = labelled(tmp_path, "dog", "cat", classes=names)
    assert [s["label"] for s in data] == [1, 0]
    names.write_bytes("cat\n".encode("utf-16"))
    with pytest.raises(ConfigurationError, match=r"data.classes=.* UTF-16, to be saved as UTF-8"):
        ImageTextShards(classes=names).classnames()


@pytest.mark.parametrize("label", [3, 3.0, np.int64(3), np.float32(3), np.array(3)])
def test_the_label_of_a_sample_is_a_whole_number_of_any_type(label):
    assert label_of({"id": "a", "label": label}) == 3
    assert type(label_of({"id": "a", "label": label})) is int


def test_what_is_no_label_is_told():
    assert label_of({"id": "a"}) is label_of({"id": "a", "label": None}) is None
    assert label_of({"id": "a", "label": True}) == 1
    for label in ("red", 0.5, float("nan"), float("inf"), [3], np.zeros(2, int)):
        with pytest.raises(DataError, match=r"whole number. Received: label=.* of a$"):
            label_of({"id": "a", "label": label})
