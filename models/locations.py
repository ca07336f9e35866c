"""Where weights are."""

import json
from pathlib import Path

import magicdistill

PROJECT = Path(magicdistill.__file__).resolve().parents[1]
CONFIG = "config.json"
"""In a folder of weights, what builds the network."""


def find_weights(location: str, field: str) -> Path:
    """Return a folder of weights, or a checkpoint file.

    A relative path starts here or at the project's root. Of a whole diffusers pipeline the part
    is taken that `field` asks for: `transformer` or `vae`. Raises FileNotFoundError naming the
    recipe's field.
    """
    path = Path(location).expanduser()
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
