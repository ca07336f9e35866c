"""A folder, local or in an object store, of videos and pictures."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Literal

from pydantic import Field

from magicdistill.data_pipeline.rows import Video, digest
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.stores import MISSING, MISSING_FILE, shots_mark
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

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield one video per file, in the order of their names."""
        folder = self.folder(self.path, clips_directory)
        for name in folder.names():
            uri, state = folder.uri(name), folder.state(name)
            yield Video(
                video_id=digest(uri, *shots_mark(self.split_shots)),
                source_id=f"folder/{self.label}/{name}",
                uri=uri,
                path=folder.path(name),
                fingerprint=state or MISSING,
                license=self.license,
                mixture=self.mixture,
                split_shots=self.split_shots,
                fault="" if state else MISSING_FILE,  # a dangling link
            )
