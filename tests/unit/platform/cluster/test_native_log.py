"""Lines of Ray's C++ code stay off the terminal, unless the job fails; nothing else is lost."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from magicdistill.platform.cluster import native_log

STAMP = b"[2026-11-30 11:16:40,272 E 17466 17466] "
HARMLESS = (
    STAMP + b"core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(Score))' and ID: "
    b"'fe5b136d' has constructor arguments in the object store and max_restarts > 0. If\n"
)
NETWORK = STAMP + b"network_util.cc:146: Unable to detect local IP address.\n"
LOST = STAMP + b"(python-core-driver) rpc_client.h:203: Failed to connect to GCS within 60 s.\n"
FATAL = STAMP.replace(b" E ", b" C ") + b"core_worker.cc:99: An unexpected system state\n"
OTHER = b"Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ([HARMLESS, NETWORK, LOST, native_log.ENDED_WELL], []),
        ([HARMLESS], []),
        ([OTHER, HARMLESS, LOST, OTHER], [OTHER, OTHER, b"Ray's own messages:\n", LOST]),
        ([FATAL, OTHER, native_log.ENDED_WELL], [FATAL, OTHER]),
        ([b"[2026-11-30 11:16:40] not Ray's\n"], [b"[2026-11-30 11:16:40] not Ray's\n"]),
        ([b"no end of line"], [b"no end of line"]),
    ],
)
def test_only_rays_lines_are_held_and_shown_unless_the_job_ends_well(
    written: list[bytes], shown: list[bytes]
) -> None:
    out = io.BytesIO()
    native_log.pass_on(io.BytesIO(b"".join(written)), out)
    assert out.getvalue() == b"".join(shown)


JOB = """
import ctypes, os, sys
sys.path[0] = {root!r}
from magicdistill.platform.cluster.native_log import held_back

library = ctypes.CDLL(None)
def native(text):
    stream = ctypes.c_void_p.in_dll(library, "stderr")
    library.fputs(text, stream)
    library.fflush(stream)

for _ in range(2):
    with held_back(KeyboardInterrupt):
        native({line!r})
        native(b"of another library\\n")
        print("of Python", file=sys.stderr)
        os.system("echo of a child >&2")
        {end}
native(b"afterwards\\n")
"""
COMMON = {"of another library", "of Python", "of a child"}
RAYS = LOST.decode().rstrip()


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        ("pass", {"afterwards"}),
        ("raise KeyboardInterrupt", {"KeyboardInterrupt"}),
        ("raise ValueError('a fault')", {RAYS, "ValueError: a fault"}),
        ("os._exit(1)", {RAYS}),
        ("os.abort()", {RAYS}),
    ],
)
def test_a_job_that_fails_shows_what_ray_said_and_one_that_crashes_too(
    tmp_path: Path, end: str, shown: set[str]
) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB.format(root=str(Path(__file__).parents[4]), line=LOST, end=end))
    job = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    lines = set(job.stderr.splitlines())
    assert COMMON | shown <= lines
    assert (RAYS in lines) == (RAYS in shown)
