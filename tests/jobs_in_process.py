"""Jobs run in the process of a test, as far as they refuse or end by themselves."""

import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import transformers.utils.logging

# Its handler keeps the stream that is there when it is made: not the one of a job's words.
transformers.utils.logging.get_logger()


def run(job: str, command: str) -> tuple[object, str]:
    """Give a command line to a job as the shell does; return its status and what it said."""
    said = StringIO()
    sys.argv = [f"jobs/{job}.py", *shlex.split(command)]
    with redirect_stdout(StringIO()), redirect_stderr(said):
        try:
            importlib.import_module(f"magicdistill.jobs.{job}").main()
        except SystemExit as ended:
            return ended.code, said.getvalue()
    return "went on", said.getvalue()


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Undo afterwards what a job does to its process before it refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    environment = dict(os.environ)
    with warnings.catch_warnings():
        yield
    os.environ.clear()
    os.environ.update(environment)
