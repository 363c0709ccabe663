"""Text files as people and their tools write them: UTF-8, with or without a byte order mark."""

import gzip
import pathlib
import zlib

from flipkit.errors import ConfigurationError


def decode(data: bytes) -> str:
    """The text in a file's bytes, without the mark that Windows editors and Excel put first.

    Raises:
        ValueError: it is not UTF-8; the message tells the byte.
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
        advice: which file is wanted, for an error.

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
