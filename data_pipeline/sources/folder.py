"""A folder, local or in an object store, of videos and pictures."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePath
from typing import Literal

import pyarrow as pa
from pydantic import Field

from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.rows import digest
from magicdistill.data_pipeline.sources.base import TABLE_ROWS, Inputs, Mixture, SourceConfig
from magicdistill.data_pipeline.sources.columns import joined
from magicdistill.data_pipeline.sources.stores import (
    MISSING,
    MISSING_FILE,
    shots_mark,
    video_table,
)
from magicdistill.models.paths import Location


class Folder(SourceConfig):
    """Every file under a folder; a picture is a clip of one frame, and what is neither that nor a
    video becomes a failed row of the ledger."""

    kind: Literal["folder"] = "folder"
    path: Location
    """Folder or address of the files."""
    license: str
    """License that is recorded for every clip."""
    mixture: Mixture
    """Kind of the clips, which decides their limits."""
    split_shots: bool = False
    """Cut films into their shots; without it a clip with a cut inside is left to the policy."""
    name: str = Field(default="", pattern="^[^/]*$")
    """What source ids call it: `folder/<name>/<file>`. By default the folder's own name."""

    @property
    def location(self) -> str:
        """The path, absolute where it is local."""
        is_local = "://" not in self.path
        path = str(Path(self.path).absolute()) if is_local else self.path
        return path.rstrip("/")

    @property
    def label(self) -> str:
        """The name, or the folder's own."""
        return self.name or PurePath(self.location).name

    def named_place(self) -> tuple[str, str]:
        """Return the label and the location."""
        return self.label, self.location

    def inputs(self) -> Inputs:
        """Return the folder."""
        return Inputs(folders=[self.path])

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield one video per file, in the order of their names."""
        folder = self.folder(self.path, clips_directory)
        each = iter(folder.names())
        while some := list(islice(each, TABLE_ROWS)):
            names = pa.array(some, pa.string())
            uris, states = folder.uris(names), folder.states(names)
            marks = shots_mark(self.split_shots)
            yield video_table(
                len(some),
                video_id=pa.array([digest(uri, *marks) for uri in uris.to_pylist()], pa.string()),
                source_id=joined(f"folder/{self.label}/", names),
                uri=uris,
                path=folder.paths(names),
                fingerprint=pc.fill_null(states, MISSING),
                license=self.license,
                mixture=self.mixture,
                split_shots=self.split_shots,
                fault=pc.if_else(states.is_valid(), "", MISSING_FILE),  # a dangling link
            )
