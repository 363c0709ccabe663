"""The positions of a tar's samples: an index with a row for each, made once and cached."""

import functools
import hashlib
import os
import tarfile
import threading
import weakref
from collections.abc import Iterator

import numpy as np
from absl import logging

from flipkit import files
from flipkit.errors import DataError

IMAGE, TEXT, JSON, CLASS = range(4)
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")
KINDS = {**dict.fromkeys(IMAGES, IMAGE), "txt": TEXT, "json": JSON, "cls": CLASS}  # by extension
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
INDEX_FORMAT = 2  # part of an index file's name: another layout finds no old file
REMEDY = "Download it again or leave it out of the pattern."
_ZEROS = tarfile.NUL * tarfile.BLOCKSIZE


class Shard:
    """One open tar: a file descriptor, and an index with a row for each sample.

    Threads may share it. It is closed when nothing refers to it, so that no thread reads from a
    descriptor that another thread closed.

    Attributes:
        index: a structured array, a row per sample in order of appearance: `"key"` in UTF-8, and
            `"members"` (int64, 4 x 2), offset and size in bytes of the image, the text, the json and
            the class, 0 and 0 where there is none.
        left_out: number of members that belong to no sample, and the name of the first.
    """

    def __init__(self, path, version=None):
        self.path = path
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)
        state = os.fstat(self.file)
        self.size = state.st_size  # bytes
        identity = (INDEX_FORMAT, os.path.realpath(path), self.size, state.st_mtime_ns)
        self.version = hashlib.sha256(repr(identity).encode(errors="surrogateescape")).hexdigest()
        if version not in (None, self.version):
            raise DataError(f"{path} changed while it was in use: start again to index it anew.")
        rows = load_index(self)
        self.index, last = rows[:-1], rows[-1]
        self.left_out = int(last["members"][0, 1]), bytes(last["key"]).decode(errors="replace")

    def read(self, member):
        """The bytes of a member, given as `(offset, size)`."""
        offset, size = member
        data = os.pread(self.file, size, offset)
        if len(data) != size:
            raise DataError(
                f"{self.path} changed while it was in use: expected {size} bytes at byte {offset}, "
                f"received {len(data)}."
            )
        return data


opened = functools.lru_cache(maxsize=64)(Shard)  # open files: the default limit is often 1,024
# NumPy reads a header with `ast`, which two threads of Python 3.11.7 can't do at once: it raises
# SystemError (github.com/python/cpython/pull/113035).
_parsing = threading.Lock()
_unsaved = {}  # version -> index, where the cache folder can't be written


def load_index(shard: Shard):
    """A shard's index: mapped from the cache folder, or built and saved there if it is new."""
    if shard.version in _unsaved:
        return _unsaved[shard.version]
    folder = os.path.join(os.environ.get("FLIPKIT_CACHE", "~/.cache/flipkit"), "index")
    file = os.path.join(os.path.expanduser(folder), f"{shard.version}.npy")
    try:
        with _parsing:
            return np.load(file, mmap_mode="r").view(np.ndarray)
    except (OSError, EOFError, ValueError):  # none yet, or one that a dying machine cut short
        index = scan(shard)
    try:
        with files.whole(file) as part:
            np.save(part, index)
    except OSError as error:
        logging.log_first_n(
            logging.WARNING, "Shard indexes stay in memory, to be built in every run: %s", 1, error
        )
        _unsaved[shard.version] = index
    return index


def scan(shard: Shard):
    """A shard's rows from its headers: its samples as `Shard.index` has them, and one more.

    The last row counts the members that are left out: `"key"` is the name of the first, the size of its
    image their number. These are members of no sample (`README`, `._a.jpg`), further ones of a
    kind, and further parts of a sample (`a.seg.png` beside `a.png`). Members of no kind are not counted
    where they belong to a sample (`a.npy`).
    """
    rows: dict[tuple[int, str], list[tuple[int, int]]] = {}
    names: dict[tuple[int, str], list[str]] = {}  # of the members in a row
    others: list[tuple[int, str]] = []
    left_out: list[str] = []
    for archive, member in _members(shard):
        key, extension = _split(member.name)
        kind = KINDS.get(extension.lower())
        if not key or kind is None or not member.isreg() or member.issparse():
            others += [] if member.isdir() else [(archive, member.name)]
            continue
        places = rows.setdefault((archive, key), [(0, 0)] * len({*KINDS.values()}))
        if places[kind] == (0, 0):
            places[kind] = (member.offset_data, member.size)
            names.setdefault((archive, key), []).append(member.name)
        else:
            left_out.append(member.name)
    for archive, key in list(rows):
        if _starts(key):  # a dot in it: a name with a date, or a part of a shorter key's sample
            image, text = (rows[archive, key][kind] != (0, 0) for kind in (IMAGE, TEXT))
            part = any((archive, start) in rows for start in _starts(key))
            if not image or (part and not text):
                left_out += names[archive, key]
                del rows[archive, key]
    left_out += [
        name for archive, name in others if not any((archive, s) in rows for s in _starts(name))
    ]
    rows[-1, left_out[0] if left_out else ""] = [(0, len(left_out)), *[(0, 0)] * 3]
    keys = [key.encode(errors="surrogateescape") for _, key in rows]
    index = np.empty(
        len(keys), [("key", f"S{max(1, *map(len, keys))}"), ("members", "<i8", (4, 2))]
    )
    index["key"] = keys
    index["members"] = np.reshape(list(rows.values()), (-1, 4, 2))
    return index


def _split(name):
    """`"a/b 1.5.png"` -> `("a/b 1.5", "png")`; the key of a hidden file (`"a/.b"`) is empty."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.rpartition(".")
    return ("" if last.startswith(".") or not stem else f"{folder}{slash}{stem}"), extension


def _starts(name):
    """`"a/b.c.d"` -> `["a/b", "a/b.c"]`: keys of samples that such a member could belong to."""
    folder, slash, last = name.rpartition("/")
    return [
        f"{folder}{slash}{last[:i]}"
        for i, letter in enumerate(last)
        if letter == "." and i and not last.startswith(".")
    ]


def _members(shard) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """The members of the tars in a file, one behind the other, with the number of their tar."""
    head = os.pread(shard.file, 16, 0)
    for magic, compression in COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{shard.path} is compressed ({compression}), which can't be read in place: unpack "
                "it to a plain .tar once. The images in it are compressed already."
            )
    start, archive = 0, 0
    with open(shard.file, "rb", closefd=False) as file:
        while start is not None:
            end = yield from _archive(shard, file, start, archive)
            start, archive = _next_archive(shard, end), archive + 1


def _archive(shard, file, start, archive):
    """The members of the tar at byte `start`; returns the position of its end mark."""
    member = None
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                there = shard.size - member.offset_data
                if not 0 <= member.size <= there:
                    raise DataError(
                        f"{shard.path} is cut short: expected {member.size} bytes of member "
                        f"{member.name!r} at byte {member.offset_data}, received {there}. {REMEDY}"
                    )
                yield archive, member
            end = tar.offset
    except (tarfile.TarError, RecursionError) as error:
        what = f"damaged after member {member.name!r}" if member else "no tar file"
        head = os.pread(shard.file, 16, start)
        raise DataError(
            f"{shard.path} is {what}: {error}. Received: {shard.size} bytes, at byte {start} "
            f"{head!r}. {REMEDY}"
        ) from error
    if os.pread(shard.file, tarfile.BLOCKSIZE, end) != _ZEROS:
        raise DataError(  # tarfile takes this for the end and drops what follows
            f"{shard.path} is cut short or damaged after "
            f"{f'member {member.name!r}' if member else 'an end mark'}: expected a header or a tar's "
            f"end mark at byte {end} of {shard.size}, received "
            f"{os.pread(shard.file, 16, end) or 'nothing'!r}. {REMEDY}"
        )
    return end


def _next_archive(shard, end):
    """The position of the first byte other than zero from byte `end` on; None if there is none."""
    place = end
    while chunk := os.pread(shard.file, 1 << 20, place):
        if there := chunk.lstrip(b"\0"):
            place += len(chunk) - len(there)
            return end + (place - end) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        place += len(chunk)
    return None
