"""Find folders and files of weights."""

import json
from pathlib import Path

import magicdistill
from magicdistill.models.paths import local_path

PROJECT = Path(magicdistill.__file__).resolve().parents[1]
CONFIG = "config.json"
"""File in a folder of weights that says how to build the network."""


def find_weights(location: str, field: str) -> Path:
    """Return a folder of weights, or a checkpoint file.

    A relative path is searched in the working directory, then in the project's root. If it is a
    whole diffusers pipeline, the result is its `vae` if the recipe's `field` ends in `vae`, else
    its `transformer`. Raises FileNotFoundError naming the field.
    """
    path = Path(local_path(location))
    part = "vae" if field.endswith("vae") else "transformer"
    for root in (path, PROJECT / path):
        for candidate in (root, root / part):
            if candidate.is_file() or (candidate / CONFIG).is_file():
                return candidate.absolute()
    raise FileNotFoundError(
        f"{field}: no weights (a folder with {CONFIG}, or a file) in {path}, here or in {PROJECT}"
    )


def is_int8(folder: Path) -> bool:
    """Tell whether a folder of diffusers holds quantised weights."""
    config = folder / CONFIG
    return config.is_file() and "quantization_config" in json.loads(config.read_text())
