"""Find folders and files of weights."""

import json
from pathlib import Path

import magicdistill
from magicdistill.models.networks.autoencoder.registry import VAES
from magicdistill.models.paths import PathError, local_path

PROJECT = Path(magicdistill.__file__).resolve().parents[1]
CONFIG = "config.json"
"""File in a folder of weights that says how to build the network."""
PIPELINE = "model_index.json"
"""File in a folder of diffusers that names a whole pipeline and its parts."""


def find_weights(location: str, field: str) -> Path:
    """Return a folder of weights, or a checkpoint file.

    A relative path is searched in the working directory, then in the project's root. If it is a
    whole diffusers pipeline, the result is its `vae` if the recipe's `field` ends in `vae`, else
    its `transformer`. Raises FileNotFoundError naming the field, and PathError for
    another network than those that are supported.
    """
    path = Path(local_path(location))
    part = "vae" if field.endswith("vae") else "transformer"
    for root in (path, PROJECT / path):
        for candidate in (root, root / part):
            if candidate.is_file() or (candidate / CONFIG).is_file():
                demand_supported(candidate, part, field)
                return candidate.absolute()
        demand_supported(root, part, field)
    raise FileNotFoundError(
        f"{field}: no weights (a folder with {CONFIG}, or a file) in {path}, here or in {PROJECT}"
    )


def demand_supported(folder: Path, part: str, field: str) -> None:
    """Raise PathError where a folder of diffusers holds another network, or a pipeline without it.

    What does not say its class, and what is no folder of diffusers, is left to its loader. The
    classes of VAEs are those of the registered families; those of transformers are the registered
    backbones', which `networks/backbones/registry.py` demands.
    """
    known = [family.class_name for family in VAES] if part == "vae" else []
    named = f"give a folder of {' or '.join(known) or 'diffusers that has one'}"
    if (folder / CONFIG).is_file():
        found = _class_in(folder / CONFIG)
        if found and known and found not in known:
            raise PathError(f"{field} {folder}", f"a {found} is not supported as a {part}; {named}")
    elif found := _class_in(folder / PIPELINE):
        raise PathError(f"{field} {folder}", f"a {found} without a {part} we know; {named}")


def _class_in(path: Path) -> str | None:
    """Return the class of diffusers that a file names, if it does."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_int8(folder: Path) -> bool:
    """Tell whether a folder of diffusers holds quantised weights."""
    config = folder / CONFIG
    return config.is_file() and "quantization_config" in json.loads(config.read_text())
