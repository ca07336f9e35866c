"""The console of a job: lines with their time, and live bars, which share the terminal.

Lines go to standard output, bars to standard error. Where nobody watches (no terminal, CI, the log
of a submitted job) there are no bars and no colours, and lines bear the date.
"""

import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

DIM, RED, YELLOW = 2, 31, 33
"""ANSI codes (Select Graphic Rendition) of the colours in use."""
INDENT = 9
"""Columns in front of a bar, which the time in front of a line has in the first 16 hours."""
NARROWEST = 40
"""Fewest columns that lines are laid out for."""
REFRESH_S = 0.5
"""Seconds between two looks at the clock of the bars."""

_started_s = time.monotonic()
_bars: set[tqdm] = set()
_lock = threading.RLock()


@runtime_checkable
class Stream(Protocol):
    """What is asked of a standard stream, which may be a test's."""

    def isatty(self) -> bool:
        """Tell whether the stream is a terminal."""
        ...


def is_terminal(stream: Stream) -> bool:
    """Tell whether a stream is a terminal that somebody may watch, and that can be redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def has_colour(stream: Stream) -> bool:
    """Tell whether to colour a stream; any value of NO_COLOR says no (no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def columns() -> int:
    """Return the width of the terminal, or 80 where there is none."""
    return max(NARROWEST, shutil.get_terminal_size().columns)


def write(message: str, colour: int | None = None) -> None:
    """Print a message with the time, above the bars where some are shown.

    On a terminal the time is that since the job began, and the message is laid out to the width;
    elsewhere a line of the message stays a line.
    """
    if is_terminal(sys.stdout):
        text = format_lines(
            message,
            time.monotonic() - _started_s,
            columns(),
            colour=colour,
            coloured=has_colour(sys.stdout),
        )
    else:
        text = f"[{datetime.now():%Y-%m-%d %H:%M:%S}] {message}"
    with _lock:
        if _bars:
            tqdm.write(text, file=sys.stdout)
        else:
            print(text)
        sys.stdout.flush()


def format_lines(
    message: str, elapsed_s: float, width: int, *, colour: int | None = None, coloured: bool = False
) -> str:
    """Return a message as it stands on a terminal of `width` columns, with the time in front."""
    minutes, seconds = divmod(int(elapsed_s), 60)
    time_ = f"[{minutes:3d}:{seconds:02d}]"
    indent = len(time_) + 1
    first, *rest = [
        row for line in message.split("\n") for row in lay_out(line, max(1, width - indent))
    ]
    rest = [_indented(row, indent, width) for row in rest]
    if coloured:
        time_, first, *rest = paint(time_, DIM), *(paint(row, colour) for row in (first, *rest))
    return "\n".join([f"{time_} {first}", *rest])


def _indented(row: str, indent: int, width: int) -> str:
    """Return a row below the message above it; further left where a long path fits only so."""
    words = row.lstrip()
    return " " * max(0, min(indent + len(row) - len(words), width - len(words))) + words


def paint(text: str, colour: int | None) -> str:
    """Return text in a colour."""
    return text if colour is None else f"\033[{colour}m{text}\033[0m"


def lay_out(line: str, width: int) -> list[str]:
    """Return a line as rows of at most `width` columns.

    Words, paths among them, stay whole. Parts that two blanks or more separate, such as a cycle's
    metrics, come in aligned columns of names and values.
    """
    line = line.rstrip()
    if len(line) <= width:
        return [line]
    body = line.lstrip()
    indent = " " * (len(line) - len(body))
    parts = re.split(r" {2,}", body)
    num_heading = 1
    while num_heading < len(parts) and not re.fullmatch(r"\S+( \S+)?", parts[num_heading]):
        num_heading += 1
    heading = textwrap.wrap(
        "  ".join(parts[:num_heading]),
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return heading + _grid(parts[num_heading:], width, indent + "  ")


def _grid(cells: Sequence[str], width: int, indent: str) -> list[str]:
    """Return cells, each a name and perhaps a value, in as many aligned columns as fit."""
    if not cells:
        return []
    pairs = [tuple(cell.rsplit(" ", 1)) if " " in cell else (cell, "") for cell in cells]
    wide, values = (max(map(len, column)) for column in zip(*pairs, strict=True))
    padded = [f"{name:<{wide}} {value:<{values}}" for name, value in pairs]
    step = max(1, (width - len(indent) + 2) // (wide + 1 + values + 2))
    return [
        (indent + "  ".join(padded[first : first + step])).rstrip()
        for first in range(0, len(padded), step)
    ]


def open_bar(total: int | None, bar_format: str, title: str = "") -> tqdm:
    """Show a bar on standard error, which must be a terminal; `close_bar` removes it.

    Its clock goes on by itself. `bar_format` is tqdm's.
    """
    options: dict[str, Any] = {"colour": "cyan"} if has_colour(sys.stderr) else {}
    with _lock:
        bar = tqdm(
            total=total,
            desc=title,
            bar_format=" " * INDENT + bar_format,
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            **options,
        )
        _bars.add(bar)
    threading.Thread(target=_tick, args=(bar,), daemon=True).start()
    return bar


def close_bar(bar: tqdm) -> None:
    """Remove a bar."""
    with _lock:
        _bars.discard(bar)
        bar.close()


def close_bars() -> None:
    """Remove all bars: their work goes no further."""
    for bar in [*_bars]:
        close_bar(bar)


@contextmanager
def clock() -> Iterator[None]:
    """Show on a terminal how long the body has been running."""
    if not is_terminal(sys.stderr):
        yield
        return
    bar = open_bar(None, "{elapsed} so far")
    try:
        yield
    finally:
        close_bar(bar)


def _tick(bar: tqdm) -> None:
    """Redraw a bar now and then as long as it is shown."""
    while bar in _bars:
        time.sleep(REFRESH_S)
        with _lock:
            if bar in _bars:
                bar.refresh()
