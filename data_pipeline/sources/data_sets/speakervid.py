"""SpeakerVid-5M's annotations: one JSON object per clip, published in tar archives.

The data set's page, huggingface.co/datasets/dorni/SpeakerVid-5M-Dataset, has them in
`merged_anno/tar_batch_*.tar.gz`: for each clip a file
`<id>_<W>x<H>_full_video_<shot>_<speaker>_<box>.json`. A `bbox` has left, top, right and bottom as
fractions of the frame, as the authors' code writes it. Captions, and the scores of faces and hands,
are in other archives and are not read.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from magicdistill.data_pipeline.io.object_stores import (
    first_bytes,
    open_bytes,
    parsed_json,
    read_json,
    read_json_lines,
)
from magicdistill.data_pipeline.sources.base import Inputs, Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    UNIT_FRAME,
    Entry,
    Fault,
    checked_span,
    fractions,
    in_tables,
    numbers,
)
from magicdistill.data_pipeline.sources.stores import Store, Terms
from magicdistill.models.paths import Location

SCORES = {"clear": "clear", "dover": "dover"}
"""Fields of the published scores, by the names that they are imported under."""
_FILM = re.compile(r"(?P<film>.+?)_\d+x\d+_full_video(?:_.*)?", re.DOTALL)


class SpeakerVid(SourceConfig):
    """SpeakerVid-5M (Zhang et al. 2025): people who speak or listen, with a box around each."""

    kind: Literal["speakervid-5m"] = "speakervid-5m"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The archives `tar_batch_*.tar.gz`, or lists or lines of their objects, each with its
    `filename`."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "SpeakerVid-5M (see its page; the videos are others')"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""
    SCORES: ClassVar = ("speakervid",)

    def inputs(self) -> Inputs:
        """Return the manifests and the store."""
        return Inputs(self.manifests, [self.store.path])

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the videos of the store that the annotations name."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=self.store.holds == "clips")
        return self.store.tables(in_tables(entries(self)), folder, terms)


def entries(source: SpeakerVid) -> Iterator[Entry]:
    """Yield one entry per annotation of all files.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if an archive is damaged, or a list is no JSON.
    """
    for manifest in source.manifests:
        for number, (name, facts) in enumerate(_annotations(manifest), 1):
            yield _entry(name or f"annotation {number} of {manifest.rpartition('/')[2]}", facts)


def _annotations(manifest: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of each clip and its annotation."""
    try:
        beginning = first_bytes(manifest)
        if beginning[257:262] == b"ustar":
            yield from _members(manifest)
            return
        is_list = beginning.lstrip().startswith(b"[")
        for facts in read_json(manifest) if is_list else read_json_lines(manifest):
            file = facts.get("filename") if isinstance(facts, dict) else None
            yield str(file or "").removesuffix(".json"), facts
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{manifest} cannot be read to its end: {error}") from error


def _members(manifest: str) -> Iterator[tuple[str, Any]]:
    with open_bytes(manifest) as raw, tarfile.open(fileobj=raw, mode="r|") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".json"):
                file = archive.extractfile(member)
                text = file.read().decode(errors="replace") if file else ""
                yield Path(member.name).stem, parsed_json(text)


def _entry(name: str, facts: Any) -> Entry:
    found = _FILM.fullmatch(name)
    film = found["film"] if found else name
    try:
        scores = numbers("speakervid", {short: facts.get(key) for short, key in SCORES.items()})
    except (AttributeError, Fault) as error:
        reason = str(error) if isinstance(error, Fault) else "bad row: no JSON object"
        return Entry(name, film, fault=reason)
    try:
        start = float(facts["start"])
        t0_s, t1_s = checked_span(start, start + float(facts["duration"]))
        crop = fractions(facts["bbox"])
    except Fault as fault:
        return Entry(name, film, imported_scores=scores, span_fault=str(fault))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"bad row: {type(error).__name__}: {error}"
        return Entry(name, film, imported_scores=scores, span_fault=reason)
    return Entry(name, film, t0_s, t1_s, crop=crop, crop_frame=UNIT_FRAME, imported_scores=scores)
