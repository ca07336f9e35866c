"""Where weights are."""

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
