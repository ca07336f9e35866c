"""VBench-I2V's list of pictures, prompts and the dimensions that each pair counts for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from magicdistill.data_pipeline.io.object_stores import Folder, read_json
from magicdistill.data_pipeline.rows import Video
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import Entry
from magicdistill.data_pipeline.sources.stores import Terms, listed
from magicdistill.models.paths import Location

# What an error adds about a list or folder that is not there.
ORIGIN = (
    "vbench2_beta_i2v in VBench's repository, github.com/Vchitect/VBench, has the list "
    "vbench2_i2v_full_info.json, and its download_data.sh fetches the pictures"
)


class VbenchI2v(SourceConfig):
    """The pictures and prompts of VBench-I2V (Huang et al. 2024), one row per pair.

    VBench's repository has the list; its script `download_data.sh` fetches the pictures, in a
    folder for each aspect.
    """

    kind: Literal["vbench-i2v"] = "vbench-i2v"
    manifest: Location
    """The file `vbench2_i2v_full_info.json` of VBench."""
    images: Location
    """The folder of the pictures, such as `crop/16-9`."""
    left_out: tuple[str, ...] = ("camera_motion",)
    """Pairs that count for these dimensions alone are not listed."""
    license: str = "VBench-I2V (pictures of Pexels and Pixabay)"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield one picture per pair, with its prompt as caption."""
        folder = pictures(self, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=True)
        for pair in pairs(self):
            entry = Entry(pair.prompt, pair.image, caption=pair.prompt, fault=pair.fault)
            yield listed(entry, folder, pair.image, terms)

    def counted_dimensions(self) -> dict[str, frozenset[str]]:
        """Return the dimensions of each pair, by its prompt."""
        return {pair.prompt: pair.dimensions for pair in pairs(self)}


@dataclass(frozen=True)
class Pair:
    """One prompt with its picture, usable or not."""

    prompt: str
    image: str
    """File below the folder of pictures."""
    dimensions: frozenset[str]
    """VBench's dimensions whose means the pair is counted in."""
    fault: str = ""
    """Reason why the pair cannot be used; empty if it can."""


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


def pictures(source: VbenchI2v, clips_directory: Path) -> Folder:
    """Return the folder of the pictures.

    Raises:
        FileNotFoundError: if there is none, saying where they come from.
    """
    try:
        return source.folder(source.images, clips_directory)
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
