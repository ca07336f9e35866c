"""Files of JSON rows, one a line: added to at the end, and read without what is no row.

A full disk leaves half a line and a power cut a stretch of NUL bytes. Neither may take the rows
around it along, nor stop a run that is resumed.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TIME = "time_ms"
"""The key of a row that says when it was written, in milliseconds since 1970; it is no metric."""


def append_line(path: Path, line: str) -> None:
    """Add a line, behind a line break where the last one was cut off.

    Raises OSError, naming the file.
    """
    try:
        with path.open("a+b") as file:
            size = os.fstat(file.fileno()).st_size
            is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" * is_torn + line.encode() + b"\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_row(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Add the metrics of a step with the time."""
    now_ms = time.time_ns() // 1_000_000
    append_line(path, json.dumps({"step": step, TIME: now_ms, **values}))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the whole lines, with `\\n`; a byte that is no UTF-8 is replaced."""
    if path.exists():
        with path.open(errors="replace", newline="\n") as lines:
            yield from (line for line in lines if line.endswith("\n"))


def parse_row(line: str | bytes) -> dict[str, Any] | None:
    """Return a row: a step and numbers by name; None for a line that is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(isinstance(value, int | float) for value in row.values()) else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows in the order of writing, each with its step and without its time."""
    for line in read_lines(path):
        if (row := parse_row(line)) is not None:
            row.pop(TIME, None)
            yield row
