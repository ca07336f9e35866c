"""Watches growing files from a thread, by which a driver shows what its workers write."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def polling(
    action: Callable[[], None], every_s: float, what: str, warn: Callable[[str], None] = print
) -> Iterator[None]:
    """Call `action` again and again beside the body, and once more after it.

    An OSError of `action`, such as a disk that is full for a while, is no failure of the body: the
    next call tries again, and `warn` is told once until one succeeds, with `what` it is that
    failed. Any other exception ends the calls and is raised after the body, unless that raised.
    """
    leaving = threading.Event()
    failures: list[Exception] = []

    def repeat() -> None:
        has_warned = False
        try:
            while True:
                is_last = leaving.wait(every_s)
                try:
                    action()
                    has_warned = False
                except OSError as error:
                    if not has_warned:
                        warn(f"{what} failed and will be tried again: {error}")
                    has_warned = True
                if is_last:
                    return
        except Exception as error:  # handed to the thread that runs the body
            failures.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()
    if failures:
        raise failures[0]


class Tail:
    """The whole lines added to a file since the last look."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self.path = path
        exists = path.exists()
        self.offset = 0 if from_start or not exists else path.stat().st_size
        self.file_number = path.stat().st_ino if exists else None

    def lines(self) -> list[str]:
        """Return the new lines; all of them again once the file was replaced."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            number, self.file_number = self.file_number, os.fstat(file.fileno()).st_ino
            same = number in (None, self.file_number) and file.seek(0, 2) >= self.offset
            file.seek(self.offset if same else 0)
            whole, newline, rest = file.read().rpartition(b"\n")
            self.offset = file.tell() - len(rest)
        return whole.decode(errors="replace").split("\n") if newline else []
