"""What every source answers for itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field, PrivateAttr

from magicdistill.data_pipeline.io.object_stores import Folder
from magicdistill.data_pipeline.rows import Video, videos_to_table
from magicdistill.models.config import Config

Mixture = Literal["portrait", "general", "anime"]
DEFAULT_MAX_AGE_H = 1.0
LISTINGS = "listings"
"""Name of the folder, beside rendered clips, of the listings of object stores."""
Folders = dict[tuple[str, float], Folder]
"""Folders by their location and the hours for which their listing is kept."""
TABLE_ROWS = 50_000
"""Largest number of rows in a table of a source that lists its videos one by one."""


@dataclass(frozen=True)
class UniformClips:
    """What is known beforehand of a source whose clips all have one length."""

    whose: str
    """The source, as an error names it: `Inter4K's`."""
    width: int
    height: int
    seconds: float
    fix: str
    """What a recipe can change where its bucket asks for longer clips."""


@dataclass(frozen=True)
class Inputs:
    """The files and folders that a source reads, and nothing else, when it lists its videos."""

    files: Sequence[str] = ()
    folders: Sequence[str] = ()


class SourceConfig(Config):
    """Where clips come from: a configuration that lists its own videos.

    A source is one file with a subclass that names itself, `kind: Literal["mine"] = "mine"`, and
    one line in `registry.py`, or `SOURCES.register` in a plugin. Only `videos` has to be written,
    or `tables` where there are millions; the other answers have defaults.
    """

    kind: str
    """Kind of the source, which decides its other fields."""
    listing_max_age_h: float = Field(
        default=DEFAULT_MAX_AGE_H, ge=0, exclude_if=lambda age: age == DEFAULT_MAX_AGE_H
    )
    """Hours for which a listing of an object store is kept and used again; 0 lists in every run."""
    _folders: Folders | None = PrivateAttr(default=None)
    """The folders that were opened, where those that list share them."""
    SCORES: ClassVar[tuple[str, ...] | None] = ()
    """First parts of the names of scores that the listing imports, such as `koala` for
    `koala.clarity`; null where each line of a manifest names its own."""
    SCHEME: ClassVar[str] = ""
    """Scheme of the addresses, `scheme:…`, of clips that `render` writes when they are needed."""

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield all videos without opening any; what nobody can use is yielded with its `fault`.

        Args:
            clips_directory: where a source that renders its clips puts the files.

        Raises:
            FileNotFoundError: if a folder or manifest does not exist.
            ValueError: if a manifest has another format.
        """
        raise NotImplementedError

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield what the source lists as tables of `VIDEO_SCHEMA`: what the pipeline asks for.

        By default those are the `videos`. A source of millions of rows makes tables of columns at
        once instead, and has no `videos`. Takes and raises what `videos` does.
        """
        videos = self.videos(clips_directory)
        while some := list(islice(videos, TABLE_ROWS)):
            yield videos_to_table(some)

    def inputs(self) -> Inputs | None:
        """Return what the listing is made of, so that it is kept where nothing of it has changed.

        Null, the default, is anything; the source is then listed anew in every run.
        """
        return None

    def folder(self, location: str, clips_directory: Path) -> Folder:
        """Return a folder or prefix whose listing is kept beside the rendered clips.

        Raises:
            FileNotFoundError: if a local folder does not exist.
        """
        opened: Folders = {} if self._folders is None else self._folders
        key, age_h = (location, self.listing_max_age_h), self.listing_max_age_h
        if key not in opened:
            opened[key] = Folder(location, clips_directory / LISTINGS, age_h)
        return opened[key]

    def parts(self, folders: Folders) -> Sequence["SourceConfig"]:
        """Return sources that list the same one after the other, and that are kept one by one: one
        for each of its `manifests`, where it has such a field and says what it reads.

        Args:
            folders: takes the folders that they open, which they share.
        """
        manifests = getattr(self, "manifests", ()) if self.inputs() is not None else ()
        changes = [{"manifests": (manifest,)} for manifest in manifests] or [{}]
        parts = [self.model_copy(update=change) for change in changes]
        for part in parts:
            part._folders = folders
        return parts

    @classmethod
    def render(cls, uri: str, path: Path) -> None:
        """Write the clip of an address that begins with `SCHEME`."""
        raise NotImplementedError

    def terms(self) -> str:
        """Return the licence of the clips for a model card, by default the field `license`."""
        return getattr(self, "license", "line by line")

    def named_place(self) -> tuple[str, str] | None:
        """Return the name that source ids begin with, and the place that only it may mean."""
        return None

    def uniform_clips(self) -> UniformClips | None:
        """Return the length of all clips, where it is known beforehand."""
        return None

    def counted_dimensions(self) -> Mapping[str, frozenset[str]]:
        """Return the metrics for which each entry counts; without any, all count for all."""
        return {}
