"""Files: written whole or not at all, and read in the forms that people and their tools write."""

import contextlib
import gzip
import json
import os
import pathlib
import secrets
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

from flipkit.errors import ConfigurationError


@contextlib.contextmanager
def whole(path) -> Iterator[pathlib.Path]:
    """The path to write the file or folder to that becomes `path` when the block ends: all or nothing.

        with files.whole("runs/a/model.keras") as part:
            model.save(part)

    The part lies beside `path`, hidden, with the same ending, which some writers need. It is on the disk
    before it gets its name, so that a kill or a power cut leaves the file before or the file after. An
    error in the block removes it. A file may replace another one; a folder replaces none.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        for file in [part] if part.is_file() else part.rglob("*"):
            if file.is_file():
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def write(path, text: str):
    """Writes a text as UTF-8, as `whole` does."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path, value: Any, indent: int | None = 1):
    """Writes a JSON document, as `whole` does."""
    write(path, json.dumps(value, indent=indent) + "\n")


def read_json(path) -> Any:
    """The JSON document in a file, with or without a byte order mark.

    Raises:
        OSError, ValueError: it can't be read, is not UTF-8, or no JSON.
    """
    return json.loads(decode(pathlib.Path(path).read_bytes()))


def decode(data: bytes) -> str:
    """The text in a file's bytes, without the mark that Windows editors and Excel put first.

    Raises:
        ValueError: it is not UTF-8; the message names the byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise ValueError(f"{error}{'; UTF-16, to be saved as UTF-8' if wide else ''}") from error


def read(path, what: str, advice: str = "") -> str:
    """The text of a file, which may be gzipped (`.gz`), with Unix ends of lines.

    Args:
        path: the file.
        what: the setting that names it, for an error.
        advice: the file that the setting expects, for an error.

    Raises:
        ConfigurationError: it can't be read, or is not UTF-8.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
        text = decode(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigurationError(
            f"Can't read {what}={str(path)!r} ({error}){advice and f': {advice}'}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
