"""Files that a user names: what is wrong with one is said before the work, in a sentence."""

import codecs
import os
import tempfile
from pathlib import Path

from magicdistill.models.paths import PathError

BINARY_BYTES = 8192
"""How much of a file is looked at to tell a binary one: a text has no null byte there."""


def read_text(path: Path) -> str:
    """Return a text in UTF-8, without its byte order mark if it has one.

    Raises PathError for a folder, for a file that is missing, unreadable or binary, and for one in
    another encoding, naming the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PathError(path, _reason(error)) from error
    demand_text(path, content)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PathError(
            path, f"line {line} is not UTF-8; save the file as UTF-8, as iconv -t UTF-8 does"
        ) from error


def demand_text(path: Path | str, beginning: bytes) -> None:
    """Raise PathError where a file begins as no text in UTF-8 does."""
    if b"\0" in beginning[:BINARY_BYTES]:
        raise PathError(path, "a binary file, or one in UTF-16; give a text in UTF-8")


def demand_output_file(path: Path, field: str) -> None:
    """Make sure, before the work, that a file can be written, and make its folder.

    Raises PathError, naming the field, where the path is a folder or its folder cannot be written.
    """
    if path.is_dir():
        raise PathError(f"{field} {path}", "a folder; give the name of a file in it")
    demand_output_folder(path.parent, field)


def demand_output_folder(path: Path, field: str) -> None:
    """Make a folder, and make sure, before the work, that files can be written in it.

    Raises PathError, naming the field, where that is not so.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = f"nothing can be written there ({_reason(error)}); give another folder"
        raise PathError(f"{field} {path}", reason) from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
