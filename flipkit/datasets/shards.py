"""Tar shards of images with text, as WebDataset and img2dataset write them, read in place."""

import functools
import json
import os
import re
import tarfile
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging

from flipkit import files
from flipkit.datasets.dataset import Dataset
from flipkit.datasets.patterns import find_shards
from flipkit.datasets.tar_index import IMAGE, IMAGES, KINDS, TEXT, Shard, opened
from flipkit.errors import BadSample, ConfigurationError, DataError
from flipkit.registry import register


@register
class ImageTextShards(Dataset):
    """Images with text from uncompressed tar files, read in place: nothing is extracted.

    A sample is the members of one tar that share a key, a member's name without its extension: an
    image (`.jpg .jpeg .png .webp .bmp .gif .tif .tiff .avif`), its caption (`.txt`, UTF-8), its
    metadata (`.json`, an object) and its class (`.cls`). Of two members of one kind the first
    counts. A name with further dots (`a.seg.png`) is, as in WebDataset, a further part of the sample
    with the shorter key (`a`), and is not read, unless it has an image and a `.txt` of its own.
    Members of no sample are left out, with a warning that counts them. A sample that lacks its
    image, or has neither text nor label, keeps its index and raises `BadSample`.

    Tars behind each other in one file (`cat`) are read one after the other.

    The dataset reads the positions of samples from the tar headers once per shard and keeps them as a
    memory-mapped file in `$FLIPKIT_CACHE/index`, by default `~/.cache/flipkit/index`; it indexes a shard
    that changed anew. Only shards in use are open, at most 64 in a process.

    Args:
        path: one pattern or a list of them, with `*`, `?`, `[...]`, `**`, `~`, `{a,b}` and
            `{00000..00041}`. Shards come in the order of the patterns, each pattern's sorted.
        text_fields: fields of the `.json` (a string or a list of strings) whose texts follow the
            caption, which is the `.txt` or else the field "caption", a text or a list of them.
        label_field: field of the `.json` that holds the class: its index (3, 3.0 or "3"), or one of
            `classes`. Without one, the `.cls` holds it.
        classes: names of the classes, a list or a text file with a name per line, where the field
            holds names; None takes the field's values as indices.

    A sample holds, besides image (bytes), texts ([] where it has a label alone) and id
    (`"00000.tar:key"`), `"meta"`: what its `.json` holds ({} without one) and, as `"cls"`, its `.cls`;
    and `"label"` (int) if it has one. A name that is none of the classes raises `BadSample`.

    Raises:
        DataError: at first use, if no path was given, a pattern matches nothing, or a shard is cut
            short, compressed, no tar, or has something else than zeros after its end.
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
        shards, left_out = [], {}  # path -> number of members, and the first
        with futures.ThreadPoolExecutor(8) as pool:  # threads: remote discs answer slowly
            for path, (version, count, left) in zip(paths, pool.map(_measure, paths), strict=True):
                shards.append((path, version, count))
                if left[0]:
                    left_out[path] = left
                if len(shards) % 50 == 0:
                    logging.info("Indexed %d of %d shards.", len(shards), len(paths))
        if not any(count for *_, count in shards):
            with tarfile.open(paths[0], "r:") as tar:
                names = [member.name for _, member in zip(range(5), tar, strict=False)]
            raise DataError(
                f"{len(paths)} shards hold no sample: expected members named KEY.jpg (or another "
                f"of {', '.join(KINDS)}). Received: {paths[0]!r} with {names or 'no member at all'}"
            )
        if left_out:
            path, (_, name) = next(iter(left_out.items()))
            logging.warning(
                "%d members of %d of %d shards are left out: they belong to no sample, or repeat a "
                "part of one or are a further part. The first is %r in %s.",
                *(sum(number for number, _ in left_out.values()), len(left_out), len(paths)),
                *(name, path),
            )
        return shards

    @functools.cached_property
    def _ends(self):
        """For every shard, the index after its last sample."""
        return np.cumsum([count for *_, count in self._shards])

    def _find(self, i):
        """The shard of sample `i`, its id, and (offset, size) or None of each kind of member."""
        if not 0 <= i < len(self):
            raise IndexError(f"Sample {i} of {len(self)} does not exist.")
        number = int(np.searchsorted(self._ends, i, side="right"))
        path, version, count = self._shards[number]
        shard = opened(path, version)
        entry = shard.index[i - int(self._ends[number]) + count]
        key = f"{os.path.basename(path)}:{bytes(entry['key']).decode(errors='replace')}"
        members = [(start, size) if start else None for start, size in entry["members"].tolist()]
        return shard, key, members

    def _words(self, shard, key, members):
        """A sample without its image."""
        text, *rest = [shard.read(member) if member else None for member in members[TEXT:]]
        try:
            meta = parse(*rest)
            texts = captions(text, meta, self.text_fields)
        except (ValueError, RecursionError) as error:  # what decode, loads and encode raise
            raise BadSample(f"{key} has unreadable text: {error}") from error
        label = self._label(key, meta)
        if not texts and label is None:
            fields = dict.fromkeys(("caption", *self.text_fields, self.label_field, "cls"))
            there = [f"{name}={repr(meta[name])[:40]}" for name in fields if name in meta]
            there = ["an empty .txt"] * (text is not None) + there
            raise BadSample(
                f"{key} has no text and no label: expected a member .txt or .cls, or a .json with "
                f"one of {', '.join(list(fields)[:-1])}. Received: {', '.join(there) or 'none'}"
            )
        sample = {"texts": texts, "id": key, "meta": meta}
        return sample if label is None else {**sample, "label": label}

    def _label(self, key, meta):
        """The index of a sample's class, or None if it has no label."""
        for name in dict.fromkeys((self.label_field, "cls")):
            value = meta.get(name)
            if self._places is None or not isinstance(value, str):
                label = as_index(value)
            elif (label := self._places.get(value, as_index(value, len(self._places)))) is None:
                raise BadSample(
                    f"{key} has an unknown class: {name}={value!r} is none of the "
                    f"{len(self._places)} classes"
                )
            if label is not None:
                return label
        return None

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
            lines = files.read(names, "data.classes").split("\n")
            names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise ConfigurationError(
                "These shards hold no names of classes: set classnames=FILE.json, or data.classes"
            )
        return {"names": list(names)}


def parse(details: bytes | None, label: bytes | None) -> dict:
    """The content of a sample's `.json`, with its `.cls` as `"cls"` if the `.json` has none."""
    meta = {} if details is None else json.loads(details)
    if not isinstance(meta, dict):
        raise ValueError(f"expected an object in the .json, received a {type(meta).__name__}")
    return meta if label is None else {"cls": files.decode(label).strip(), **meta}


def captions(text: bytes | None, meta: dict, fields) -> list[str]:
    """The texts of a sample, caption first and without repeats."""
    caption = text and files.decode(text).strip()
    found: list[Any] = [caption] if caption else _listed(meta.get("caption"))
    for name in fields:
        found += _listed(meta.get(name))
    found = [value.strip() for value in found if isinstance(value, str) and value.strip()]
    "".join(found).encode()  # JSON can spell lone surrogates, which are no text
    return list(dict.fromkeys(found))


def _listed(value):
    return value if isinstance(value, list) else [value]


def as_index(value, classes: int | None = None) -> int | None:
    """The class that a field of a `.json` or a `.cls` holds as an index, or None if it holds none.

    Whole numbers as pandas and WebDataset write them are accepted: 3, 3.0, "3" and "3.0". With
    `classes`, a text has to be an index below that number.
    """
    if isinstance(value, str):
        digits = re.fullmatch(r"([+-]?[0-9]{1,18})(\.0*)?", value.strip())
        index = int(digits[1]) if digits else None
        return None if index is None or (classes and not 0 <= index < classes) else index
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if type(value) is int else None


def _measure(path):
    """Version and number of samples of the shard at `path`, and the members that it leaves out."""
    shard = Shard(path)
    return shard.version, len(shard.index), shard.left_out
