"""VBench-I2V's list of pictures, prompts and the dimensions that each pair counts for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from magicdistill.data_pipeline.io.object_stores import Folder, read_json
from magicdistill.data_pipeline.sources.config import VbenchI2v

ORIGIN = (
    "vbench2_beta_i2v in VBench's repository, github.com/Vchitect/VBench, has the list "
    "vbench2_i2v_full_info.json, and its download_data.sh fetches the pictures"
)


@dataclass(frozen=True)
class Pair:
    """One prompt with its picture."""

    prompt: str
    image: str
    """File below the folder of pictures."""
    dimensions: frozenset[str]
    """What the pair counts for."""
    fault: str = ""


def pairs(source: VbenchI2v) -> Iterator[Pair]:
    """Yield the pairs that count for more than what the source leaves out.

    Raises:
        FileNotFoundError: if the list does not exist, saying where it comes from.
        ValueError: if it is no list of pairs.
    """
    try:
        rows = read_json(source.manifest)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: {ORIGIN}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{source.manifest} is no list of pairs")
    found = (_pair(number, row) for number, row in enumerate(rows))
    return (pair for pair in found if pair.fault or pair.dimensions - set(source.left_out))


def pictures(source: VbenchI2v) -> Folder:
    """Return the folder of the pictures.

    Raises:
        FileNotFoundError: if there is none, saying where they come from.
    """
    try:
        return Folder(source.images)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: {ORIGIN}") from error


def _pair(number: int, row: Any) -> Pair:
    try:
        texts = row["prompt_en"], row["image_name"]
        if not all(isinstance(text, str) and text for text in texts):
            raise TypeError("a prompt and a picture are texts")
        return Pair(*texts, frozenset(map(str, row["dimension"])))
    except (KeyError, TypeError) as error:
        fault = f"bad row: {type(error).__name__}: {error}"
        return Pair(f"row {number}", "", frozenset(), fault)
