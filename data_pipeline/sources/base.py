"""What every source answers for itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from magicdistill.data_pipeline.rows import Video
from magicdistill.models.config import Config

Mixture = Literal["portrait", "general", "anime"]


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


class SourceConfig(Config):
    """Where clips come from: a configuration that lists its own videos.

    A source is one file with a subclass that names itself, `kind: Literal["mine"] = "mine"`, and
    one line in `registry.py`, or `SOURCES.register` in a plugin. Only `videos` has to be written;
    the other answers have defaults.
    """

    kind: str
    """Kind of the source, which decides its other fields."""
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
