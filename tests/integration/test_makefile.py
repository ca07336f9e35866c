"""`make` prints nothing that frightens a newcomer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools.build_meta import build_editable; build_editable('wheel')"


def test_the_editable_installation_of_make_setup_warns_of_nothing(tmp_path: Path) -> None:
    """Without its setting it does: setuptools warns of every such installation."""
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    setting = re.search(r"PYTHONWARNINGS='([^']+)' \S+ -m pip install .* -e ", recipe)
    assert setting is not None
    for name in ("pyproject.toml", "README.md", "LICENSE", "magicdistill"):
        where = ROOT / name
        copy = shutil.copytree if where.is_dir() else shutil.copy
        copy(where, tmp_path / name)
    for link in (tmp_path / "magicdistill").iterdir():
        if link.is_dir():
            (tmp_path / link.name).mkdir(exist_ok=True)
    (tmp_path / "wheel").mkdir()
    said = [
        subprocess.run(
            [sys.executable, "-c", BUILD],
            cwd=tmp_path,
            env={"PYTHONWARNINGS": value},
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for value in ("default", setting[1])
    ]
    assert ["Editable installation" in one for one in said] == [True, False]
