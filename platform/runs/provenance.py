"""What a run was made with: the commit, the changes on top of it, and the package versions."""

import subprocess
import uuid
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from pydantic import Field

from magicdistill.models.config import Config

SOURCE = Path(__file__).resolve().parents[2]


class Provenance(Config):
    """The code and the packages behind a run."""

    commit: str | None
    """Null where the code is not in a git repository, as in a submitted job's copy."""
    diff: str
    """Uncommitted changes of tracked files."""
    packages: dict[str, str]
    run_id: str = ""
    """Of one run alone: a new run of the same name is another one."""
    workers: dict[str, str] = Field(default_factory=dict)
    """GPU, and versions of driver, CUDA, NCCL, its plugin and the libraries, on the workers when
    they last started; empty before."""

    @classmethod
    def here(cls) -> "Provenance":
        """Describe the running code."""
        commit = _git("rev-parse", "HEAD")
        return cls(
            commit=commit.strip() if commit else None,
            diff=_git("diff", "HEAD", "--no-ext-diff") or "" if commit else "",
            packages=_packages(),
            run_id=uuid.uuid4().hex[:8],
        )


@cache
def _packages() -> dict[str, str]:
    """Return the version of each installed package."""
    return {d.metadata["Name"]: d.version for d in distributions()}


def _git(*arguments: str) -> str | None:
    """Return what git prints about the source tree, None where there is no git or no commit."""
    try:
        result = subprocess.run(
            ["git", "-C", str(SOURCE), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return result.stdout
