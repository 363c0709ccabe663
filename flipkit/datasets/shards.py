"""Tar shards of images with text, as WebDataset and img2dataset write them, read in place."""

import collections
import functools
import glob
import hashlib
import json
import os
import re
import tarfile
import tempfile
import threading
import weakref
from concurrent import futures

import numpy as np
from absl import logging

from flipkit.datasets.dataset import Dataset
from flipkit.errors import BadSample, ConfigurationError, DataError
from flipkit.registry import register

IMAGE, TEXT, JSON = range(3)
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
KINDS = {**dict.fromkeys(IMAGES, IMAGE), "txt": TEXT, "json": JSON}  # by extension
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
INDEX_FORMAT = 1  # part of an index file's name: another layout finds no old file


@register
class ImageTextShards(Dataset):
    """Images with text from uncompressed tar files, read in place: nothing is ever extracted.

    A sample is the members of one shard that share a key, which is a member's name up to the first
    dot of its last part: an image (`.jpg .jpeg .png .webp .bmp .gif`), its caption (`.txt`, UTF-8)
    and what else is known of it (`.json`, an object). Of two members of one kind the first counts.
    A sample that lacks its image or any text keeps its place and raises `BadSample`.

    Where each sample lies is read from the tar headers once per shard and kept as a memory-mapped
    file in `$FLIPKIT_CACHE/index`, by default `~/.cache/flipkit/index`; a shard that changed is
    indexed anew. Only shards in use are open, at most 64 in a process.

    Args:
        path: one pattern or a list of them, with `*`, `?`, `[...]`, `**`, `~`, `{a,b}` and
            `{00000..00041}`. Shards come in the order of the patterns, each pattern's sorted.
        text_fields: fields of the `.json` (a string or a list of strings) whose texts follow the
            caption, which is the `.txt` or else the field "caption".
        label_field: field of the `.json` that holds the class: its index, or one of `classes`.
        classes: names of the classes, a list or a text file with a name per line, where the field
            holds names; None leaves it to indices.

    A sample holds, besides image (bytes), texts and id (`"00000.tar:key"`), `"meta"`: what its
    `.json` holds ({} without one), and `"label"` (int) if that has one. A name that is none of the
    classes raises `BadSample`.

    Raises:
        DataError: at first use, if no path was given, a pattern matches nothing, or a shard is cut
            short, compressed or no tar.
    """

    def __init__(self, path=None, text_fields=("captions",), *, label_field="label", classes=None):
        self.path = os.fspath(path) if isinstance(path, os.PathLike) else path
        self.text_fields = (text_fields,) if isinstance(text_fields, str) else tuple(text_fields)
        self.label_field = label_field
        self.classes = os.fspath(classes) if isinstance(classes, os.PathLike) else classes

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, i):
        shard, key, members = self._find(i)
        sample = self._words(shard, key, members)
        if not members[IMAGE]:
            raise BadSample(f"{key} has no image: expected a member .{' .'.join(IMAGES)}")
        return {"image": shard.read(members[IMAGE]), **sample}

    def texts(self, i):
        """The texts of sample `i`; its image is not read."""
        return self._words(*self._find(i))["texts"]

    @functools.cached_property
    def _shards(self) -> list[tuple[str, str, int]]:
        """Path, version and number of samples of every shard; indexes those that are new."""
        paths = find_shards(self.path)
        shards = []
        with futures.ThreadPoolExecutor(8) as pool:  # threads: remote discs answer slowly
            for path, (version, count) in zip(paths, pool.map(_measure, paths), strict=True):
                shards.append((path, version, count))
                if len(shards) % 50 == 0:
                    logging.info("Indexed %d of %d shards.", len(shards), len(paths))
        if not any(count for *_, count in shards):
            with tarfile.open(paths[0], "r:") as tar:
                names = [member.name for _, member in zip(range(5), tar, strict=False)]
            raise DataError(
                f"{len(paths)} shards hold no sample: expected members named KEY.jpg (or another "
                f"of {', '.join(KINDS)}). Received: {paths[0]!r} with {names or 'no member at all'}"
            )
        return shards

    @functools.cached_property
    def _ends(self):
        """For every shard, one more than the number of its last sample."""
        return np.cumsum([count for *_, count in self._shards])

    def _find(self, i):
        """The shard of sample `i`, its id, and (offset, size) or None of image, text and json."""
        if not 0 <= i < len(self):
            raise IndexError(f"Sample {i} of {len(self)} was asked for.")
        number = int(np.searchsorted(self._ends, i, side="right"))
        path, version, count = self._shards[number]
        shard = _open(path, version)
        entry = shard.index[i - int(self._ends[number]) + count]
        key = f"{os.path.basename(path)}:{bytes(entry['key']).decode(errors='replace')}"
        members = [(start, size) if start else None for start, size in entry["members"].tolist()]
        return shard, key, members

    def _words(self, shard, key, members):
        """A sample without its image."""
        text, details = [shard.read(member) if member else None for member in members[TEXT:]]
        try:
            texts, meta = parse(text, details, self.text_fields)
        except (ValueError, RecursionError) as error:  # what decode, loads and encode raise
            raise BadSample(f"{key} has unreadable text: {error}") from error
        if not texts:
            raise BadSample(
                f"{key} has no text: expected a member .txt, or a .json with one of "
                f"{', '.join(dict.fromkeys(('caption', *self.text_fields)))}"
            )
        return {"texts": texts, "id": key, "meta": meta, **self._label(key, meta)}

    def _label(self, key, meta):
        value = meta.get(self.label_field)
        if self._places is not None and isinstance(value, str):
            if value not in self._places:
                raise BadSample(
                    f"{key} has an unknown class: {self.label_field}={value!r} is none of the "
                    f"{len(self._places)} classes"
                )
            value = self._places[value]
        return {"label": value} if type(value) is int else {}

    @functools.cached_property
    def _places(self) -> dict[str, int] | None:
        """{name of a class: its index}, or None where labels are indices."""
        if self.classes is None:
            return None
        return {name: place for place, name in enumerate(self.classnames()["names"])}

    def classnames(self) -> dict[str, list[str]]:
        """The classes' `names`, for `flipkit.ZeroShot`."""
        names = self.classes
        if isinstance(names, str):
            if not os.path.isfile(names):
                raise DataError(f"Expected a text file with a class per line. Received: {names!r}")
            with open(names, encoding="utf-8") as file:
                names = [line.strip() for line in file if line.strip()]
        if not names:
            raise ConfigurationError(
                "These shards tell no names of classes: set classnames=FILE.json, or data.classes"
            )
        return {"names": list(names)}


def parse(text: bytes | None, details: bytes | None, fields) -> tuple[list[str], dict]:
    """The texts of a sample, caption first and without repeats, and what its `.json` holds."""
    meta = {} if details is None else json.loads(details)
    if not isinstance(meta, dict):
        raise ValueError(f"expected an object in the .json, received a {type(meta).__name__}")
    found = [meta.get("caption") if text is None else text.decode()]
    for name in fields:
        value = meta.get(name)
        found += value if isinstance(value, list) else [value]
    found = [value.strip() for value in found if isinstance(value, str) and value.strip()]
    "".join(found).encode()  # JSON can spell lone surrogates, which are no text
    return list(dict.fromkeys(found)), meta


class Shard:
    """One open tar: a file descriptor, and an index with a row for each sample.

    Threads may share it. It is closed when nobody holds it any more, so that no thread reads from
    a descriptor that another one closed.
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
        self.index = load_index(self)

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


_open = functools.lru_cache(maxsize=64)(Shard)  # open files: the default limit is often 1,024
# NumPy reads a header with `ast`, which two threads of Python 3.11.7 can't do at once: it raises
# SystemError (github.com/python/cpython/pull/113035).
_parsing = threading.Lock()
_unsaved = {}  # version -> index, where the cache folder can't be written


def _measure(path):
    """Version and number of samples of the shard at `path`."""
    shard = Shard(path)
    return shard.version, len(shard.index)


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
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(file)) as scratch:
            np.save(os.path.join(scratch, "index.npy"), index)
            os.replace(os.path.join(scratch, "index.npy"), file)
    except OSError as error:
        logging.log_first_n(
            logging.WARNING, "Shard indexes stay in memory, to be built in every run: %s", 1, error
        )
        _unsaved[shard.version] = index
    return index


def scan(shard: Shard):
    """A shard's index from its headers: a structured array, one row per key in order of appearance.

    `"key"` is the key in UTF-8; `"members"` (int64, 3 x 2) offset and size in bytes of the image,
    the text and the json, 0 and 0 where there is none.
    """
    head = os.pread(shard.file, 16, 0)
    for magic, compression in COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{shard.path} is compressed ({compression}), which can't be read in place: unpack "
                "it to a plain .tar once. The images in it are compressed already."
            )
    remedy = "Download it again or leave it out of the pattern."
    rows = collections.defaultdict(lambda: [(0, 0)] * 3)
    member = None
    try:
        with (
            open(shard.file, "rb", closefd=False) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                there = shard.size - member.offset_data
                if not 0 <= member.size <= there:
                    raise DataError(
                        f"{shard.path} is cut short: expected {member.size} bytes of member "
                        f"{member.name!r} at byte {member.offset_data}, received {there}. {remedy}"
                    )
                key, extension = _split(member.name)
                kind = KINDS.get(extension.lower())
                if not key or kind is None or not member.isreg() or member.issparse():
                    continue
                if rows[key][kind] == (0, 0):
                    rows[key][kind] = (member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, RecursionError) as error:
        what = f"damaged after member {member.name!r}" if member else "no tar file"
        raise DataError(
            f"{shard.path} is {what}: {error}. Received: {shard.size} bytes, beginning {head!r}. "
            f"{remedy}"
        ) from error
    if os.pread(shard.file, tarfile.BLOCKSIZE, end) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(  # tarfile takes this for the end and drops what follows
            f"{shard.path} is cut short or damaged after member {member and member.name!r}: "
            f"expected a header or a tar's end mark at byte {end} of {shard.size}. {remedy}"
        )
    keys = [key.encode(errors="surrogateescape") for key in rows]
    index = np.empty(
        len(keys), [("key", f"S{max(map(len, keys), default=1)}"), ("members", "<i8", (3, 2))]
    )
    index["key"] = keys
    index["members"] = np.reshape(list(rows.values()), (-1, 3, 2))
    return index


def _split(name):
    """`"a/b.seg.png"` -> `("a/b", "seg.png")`; the key of a hidden file (`"a/.b"`) is empty."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return stem and f"{folder}{slash}{stem}", extension


def find_shards(path: str | list[str] | None) -> list[str]:
    """The files that a pattern or a list of them names, without repeats.

    Raises:
        DataError: a pattern, or a name that braces stand for, matches nothing.
    """
    if not path:
        raise DataError(
            "No data to train on: set data.path='/data/laion400m/*.tar' (tar shards) "
            "or data=captioned_shapes (built in)."
        )
    found = []
    for pattern in [path] if isinstance(path, (str, os.PathLike)) else path:
        names = expand_braces(os.path.expanduser(pattern))
        matches = [
            sorted(glob.glob(name, recursive=True))
            if glob.has_magic(name) and not os.path.exists(name)
            else [name]
            for name in names
        ]
        missing = [name for match in matches for name in match if not os.path.exists(name)]
        if missing or not any(matches):
            raise DataError(_nothing_there(pattern, missing or names))
        found += [name for match in matches for name in match]
    if folders := [name for name in found if os.path.isdir(name)]:
        raise DataError(f"Expected tar files. Received a folder: say '{folders[0]}/*.tar'")
    return list(dict.fromkeys(found))


def _nothing_there(pattern, missing):
    """The sentence for a pattern that matches nothing: which names, and what there is instead."""
    name = missing[0]
    if "://" in name:
        return f"Expected files of this machine: mount or copy the shards. Received: {pattern!r}"
    wanted = folder = os.path.dirname(name) or "."
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    inside = sorted(os.path.basename(p) for p in glob.glob(os.path.join(glob.escape(folder), "*")))
    there = [file for file in inside if file.endswith(".tar")] or inside
    which = f" ({len(missing)} names are missing, the first is {name!r})" if name != pattern else ""
    exists = "exists" if folder == wanted else f"does not; {folder!r} does"
    return (
        f"No file matches {pattern!r}{which}. Folder {wanted!r} {exists} and holds "
        f"{', '.join(there[:5]) or 'nothing'}{f' and {len(there) - 5} more' if there[5:] else ''}."
    )


def expand_braces(pattern: str) -> list[str]:
    """`"{08..10}{a,b}.tar"` -> `["08a.tar", "08b.tar", ..., "10b.tar"]`, as a shell does."""
    inner = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not inner:
        return [pattern]
    first, last, choices = inner.groups()
    if choices is None:
        options = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        options = choices.split(",")
    before, after = pattern[: inner.start()], pattern[inner.end() :]
    return [name for option in options for name in expand_braces(before + option + after)]
