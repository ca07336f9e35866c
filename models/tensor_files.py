"""Write safetensors files that others may read as they may any new file of the user's.

The library writes under a temporary name that is private to the user, and keeps it private.
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors by name, with the permissions that the user's umask gives."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, metadata)
    path.chmod(mode)


def follow_umask(folder: Path) -> None:
    """Give all files in a folder, which a library wrote, the permissions of a new file."""
    probe = folder / ".new"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
