"""Folders of pictures, with the texts of each in a file beside it."""

import functools
import os
import pathlib
import shutil
import tempfile
import weakref
from typing import Any

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
import numpy as np
from absl import logging

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with

PICTURES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@keras.saving.register_keras_serializable(package="flipkit_picture_folders")
class PictureFolders(flipkit.Dataset):
    """Pictures in a folder and its subfolders: `cats/1.jpg`, and `cats/1.txt` with a caption per line.

    Samples are in the order of their paths. The dataset ignores names that begin with a dot, and leaves out
    pictures without their text file; it logs their number. It reads the folder when the first sample or
    the length is needed, and keeps the list: start again to see pictures added since.

    Args:
        path: the folder.

    A sample's id is the path within the folder. One whose text is empty or not UTF-8, or whose files
    can't be read, raises `BadSample`.

    Raises:
        DataError: at first use, if there is no such folder, no picture in it, or no text beside any.
    """

    def __init__(self, path=None):
        self.path: Any = os.fspath(path) if isinstance(path, os.PathLike) else path

    @classmethod
    def example(cls):
        """Three grey pictures, for `flipkit.testing`, in a folder that goes when the object does."""
        folder = tempfile.mkdtemp()
        for level in (0, 128, 255):
            picture = pathlib.Path(folder, f"{level}.png")
            keras.utils.save_img(picture, np.full((8, 8, 3), level, "uint8"), scale=False)
            picture.with_suffix(".txt").write_text(f"a grey of {level}\na square")
        data = cls(folder)
        weakref.finalize(data, shutil.rmtree, folder)
        return data

    def __len__(self):
        return len(self._pictures)

    def __getitem__(self, i):
        texts, picture = self.texts(i), self._picture(i)
        return {"image": _read(picture), "texts": texts, "id": self._pictures[i]}

    def texts(self, i):
        """The texts of sample `i`; its picture is not read."""
        beside = self._picture(i).with_suffix(".txt")
        try:
            lines = _read(beside).decode("utf-8-sig").splitlines()  # some editors put a mark first
        except UnicodeDecodeError as error:
            raise flipkit.BadSample(f"{beside} is no UTF-8 text: {error}") from error
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise flipkit.BadSample(f"{beside} is empty: expected a caption per line")
        return texts

    def _picture(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"Sample {i} of {len(self)} does not exist.")
        return pathlib.Path(self.path, self._pictures[i])

    @functools.cached_property
    def _pictures(self) -> list[str]:
        """The paths within the folder, sorted; the pickle carries them to the feed's workers."""
        if not self.path or not os.path.isdir(self.path):
            raise flipkit.DataError(
                f"Expected a folder of pictures: data.path=pictures/train. Received: {self.path!r}"
            )
        base = pathlib.Path(self.path)
        names = {path.relative_to(base).as_posix() for path in base.rglob("*")}
        pictures = sorted(
            name
            for name in names
            if os.path.splitext(name)[1].lower() in PICTURES and "/." not in f"/{name}"
        )
        captioned = [name for name in pictures if f"{os.path.splitext(name)[0]}.txt" in names]
        if not captioned:
            raise flipkit.DataError(
                f"{self.path!r} holds no picture with its text: expected pairs such as 1.jpg and 1.txt, "
                f"in it or in folders of it. Received: {len(pictures)} pictures"
                + (f", the first is {pictures[0]!r}" if pictures else "")
            )
        if alone := sorted({*pictures} - {*captioned}):
            logging.warning(
                "%d of %d pictures in %r have no text and are left out; the first is %r.",
                *(len(alone), len(pictures), self.path, alone[0]),
            )
        return captioned


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise flipkit.BadSample(f"{path} can't be read: {error.strerror}") from error


@flipkit.hookimpl
def flipkit_datasets():
    """The name in recipes: `data="picture_folders"`."""
    return {"picture_folders": PictureFolders}
