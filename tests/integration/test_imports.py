"""Importing the project leaves the process as it was, and one file alone imports DeepSpeed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "data_pipeline", "platform", "jobs")
LOOK = """
import atexit, gc, importlib, json, os, signal, sys, threading, warnings

modules, libraries = json.loads(sys.argv[1]), json.loads(sys.argv[2])

def state():
    return {
        "garbage collector": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "exit hooks": atexit._ncallbacks(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signal handlers": [str(signal.getsignal(one)) for one in signal.valid_signals()],
        "warning filters": list(map(str, warnings.filters)),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "hook for errors": str(sys.excepthook),
        "path": sys.path,
    }

for name in libraries:
    importlib.import_module(name)
before = state()
for name in modules:
    importlib.import_module(name)
after = state()
changed = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps([changed, sorted(set(sys.modules))]))
"""


def code() -> list[Path]:
    return sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("magicdistill", *parts)).removesuffix(".__init__")


def imported_by(file: Path, *, at_top: bool = False) -> set[str]:
    """Return the modules that a file imports, with those that functions import by default."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if at_top else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def libraries() -> list[str]:
    """Return what the project's files import of others as soon as they are imported."""
    found = set().union(*(imported_by(file, at_top=True) for file in code()))
    return sorted(name for name in found if not name.startswith("magicdistill"))


@pytest.mark.slow
def test_importing_any_module_changes_nothing_in_the_process() -> None:
    modules = [module_of(file) for file in code()]
    result = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(modules), json.dumps(libraries())],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    changed, loaded = json.loads(result.stdout.splitlines()[-1])
    assert changed == {}
    assert set(modules) <= set(loaded)


def test_the_command_line_leaves_the_garbage_collector_to_python() -> None:
    look = "import gc{}; print(gc.get_threshold())"
    plain, ours = (
        subprocess.run(
            [sys.executable, "-c", look.format(more)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in ("", ", magicdistill.platform.launch.cli")
    )
    assert plain == ours


def test_one_file_alone_imports_deepspeed() -> None:
    files = [
        file.relative_to(ROOT).as_posix()
        for file in code()
        if any(name.split(".")[0] == "deepspeed" for name in imported_by(file))
    ]
    assert files == ["platform/engines/deepspeed_import.py"]
