"""What Ray's C++ code writes to a job's standard error: held back, and shown if the job fails.

Ray writes every error of its C++ code there besides its log file, and has no setting for it: the
one for the level would empty the file too. Hardly one of them is an error to a user, who sees a
real one as a Python exception. So a process of its own, which outlives a crash of the job, reads
what the job's C++ code writes there and holds such lines back; it shows them where the job ends
otherwise than well. It runs this file alone, which therefore imports nothing of the project.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

LINE = re.compile(
    rb"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [DIWE] \d+ \d+\] (\([\w.-]+\) )?\w+\.(cc|h):\d+: "
)
"""Begins a line of Ray's C++ code; not of level F, after which the process dies."""
HARMLESS = re.compile(rb"has constructor arguments in the object store and max_restarts > 0")
"""Ray Data provokes this one itself, with each pool of actors (ray-project/ray#57733)."""
NUM_HELD = 50
ENDED_WELL = b"\0ended well\n"
STDERR = 2
LINE_BUFFERED = 1
"""_IOLBF of the C library on Linux."""


@contextmanager
def held_back(*expected: type[BaseException]) -> Iterator[None]:
    """Hold Ray's C++ lines back while the body runs.

    They are shown after it if it ends by an exception, except one of the `expected` types, or with
    the process.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-S", __file__]
    # In a session of its own, so that a terminal's Ctrl-C does not end it.
    helper = subprocess.Popen(command, stdin=reading, stdout=STDERR, start_new_session=True)
    os.close(reading)
    os.dup2(writing, native := _native_stderr(), inheritable=False)
    os.close(writing)
    try:
        yield
        os.write(native, ENDED_WELL)
    except expected:
        os.write(native, ENDED_WELL)
        raise
    finally:
        os.dup2(STDERR, native, inheritable=False)
        helper.wait()


@cache
def _native_stderr() -> int:
    """Give the C library's `stderr` a file descriptor of its own, and return that.

    Python's standard error and that of other processes stay as they are, terminals among them.
    """
    library = ctypes.CDLL(None)
    library.fdopen.restype = ctypes.c_void_p
    descriptor = os.dup(STDERR)
    stream = library.fdopen(descriptor, b"w")
    library.setvbuf(ctypes.c_void_p(stream), None, LINE_BUFFERED, 0)
    ctypes.c_void_p.in_dll(library, "stderr").value = stream
    return descriptor


def pass_on(lines: BinaryIO, out: BinaryIO) -> None:
    """Copy what the job writes, as it comes, without Ray's lines; add them if it ended badly."""
    held: deque[bytes] = deque(maxlen=NUM_HELD)
    for line in lines:
        if line == ENDED_WELL:
            held.clear()
        elif not LINE.match(line):
            out.write(line)
            out.flush()
        elif not HARMLESS.search(line):
            held.append(line)
    if held:
        out.write(b"Ray's own messages:\n" + b"".join(held))
        out.flush()


if __name__ == "__main__":
    pass_on(sys.stdin.buffer, sys.stdout.buffer)
