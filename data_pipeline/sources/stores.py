"""Where the files of a manifest's clips are, and the rows of the videos found there."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlencode

from pydantic import model_validator

from magicdistill.data_pipeline.io import object_stores
from magicdistill.data_pipeline.rows import Video, digest
from magicdistill.data_pipeline.sources.entries import Entry
from magicdistill.models.config import Config
from magicdistill.models.paths import Location

MISSING_FILE = "missing file"
UNREADABLE = "\ufffd"
"""What a manifest's bytes become that are no UTF-8."""
MISSING = "missing"
"""State of a file that is not there."""


@dataclass(frozen=True)
class Terms:
    """What the clips of a manifest have in common."""

    dataset: str
    license: str
    mixture: str
    is_cut: bool = False
    """Whether the files are the clips, so that spans and crops do not apply any more."""
    split_shots: bool = False
    time_scale: float = 1.0
    """How many times longer than filmed a clip is played."""


class Store(Config):
    """Where the videos that a manifest names are kept."""

    path: Location
    """Folder or address of the videos."""
    holds: Literal["clips", "videos"] = "clips"
    """Clips that are cut and cropped already, or whole videos: spans and crops are then applied."""
    pattern: str = ""
    """File below `path`, from `{name}` (the clip's) and `{video}`; `{name}.mp4` or `{video}.mp4`
    by default. VFHQ's folders of PNG frames are `{name}`."""

    @property
    def file_pattern(self) -> str:
        """The pattern, or the default of what the store holds."""
        return self.pattern or ("{name}.mp4" if self.holds == "clips" else "{video}.mp4")

    def videos(
        self, entries: Iterable[Entry], dataset: str, licence: str, mixture: str
    ) -> Iterator[Video]:
        """Yield the videos of a manifest's entries; a `dataset` names them in source ids.

        Raises:
            FileNotFoundError: if the store is a local folder that does not exist.
        """
        folder = object_stores.Folder(self.path)
        terms = Terms(dataset, licence, mixture, is_cut=self.holds == "clips")
        for entry in entries:
            name = self.file_pattern.format(name=entry.name, video=entry.video)
            yield listed(entry, folder, name, terms)

    @model_validator(mode="after")
    def _check_pattern(self) -> "Store":
        try:
            distinct = self.file_pattern.format(name="a", video="b") != self.file_pattern
        except (KeyError, IndexError, ValueError):
            distinct = False
        if not distinct:
            raise ValueError(f"pattern {self.pattern!r} has to hold {{name}} or {{video}}")
        return self


def listed(entry: Entry, folder: object_stores.Folder, name: str, terms: Terms) -> Video:
    """Return the row of a manifest's entry, whose file is called `name` below the folder."""
    from magicdistill.data_pipeline.media.video import VIDEO_SUFFIXES  # slow to import

    fault = entry.fault or ("" if terms.is_cut else entry.span_fault)
    part = Entry(entry.name, entry.video) if terms.is_cut or fault else entry
    span = (part.t0_s, part.t1_s, part.crop, part.crop_frame, terms.time_scale)
    marks = (*shots_mark(terms.split_shots), *((fault,) if fault else ()))
    is_inside = _is_inside(name)
    if not fault and UNREADABLE in name:
        fault = f"bad row: {name!r} is not UTF-8; save the manifest as UTF-8"
    if not fault and not is_inside:
        fault = f"bad row: {name!r} leads out of the store"
    state = None if fault else folder.state(name)
    fault = fault or ("" if state else MISSING_FILE)
    uri = folder.uri(name) if is_inside else ""
    if state and entry.fps and PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
        pace = urlencode({"fps": entry.fps})
        uri, state = f"{uri}#{pace}", f"{state} {pace}"
    return Video(
        video_id=digest(terms.dataset, entry.name, *span, *marks),
        source_id=f"{terms.dataset}/{entry.video}",
        uri=uri,
        path=folder.path(name) if uri else "",
        fingerprint=state or f"fault {fault}",
        license=terms.license,
        mixture=terms.mixture,
        split_shots=terms.split_shots,
        entry=entry.name,
        t0_s=part.t0_s,
        t1_s=part.t1_s,
        crop=part.crop,
        crop_frame=part.crop_frame,
        time_scale=terms.time_scale,
        caption=entry.caption,
        imported_scores=entry.imported_scores,
        fault=fault,
    )


def shots_mark(split: bool) -> Sequence[str]:
    """Return what is added to the identity of a video whose shots are clips."""
    return ("split shots",) if split else ()


def _is_inside(name: str) -> bool:
    return bool(name) and name[0] != "/" and ".." not in name.split("/") and "\0" not in name
