"""Clips of the procedural world (`portrait_world`), written when they are needed."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import Field

from magicdistill.data_pipeline.rows import Video, digest
from magicdistill.data_pipeline.sources.base import SourceConfig


class PortraitWorld(SourceConfig):
    """Procedural talking portraits, rendered from seeds and written as H.264."""

    kind: Literal["portrait-world"] = "portrait-world"
    num_clips: int = Field(ge=1)
    """Number of clips to render."""
    first_seed: int = Field(default=0, ge=0)
    """Seed of the first clip; the next ones follow it."""
    num_frames: int = Field(default=51, ge=1)
    """Frames of each clip."""
    size: int = Field(default=64, ge=16, multiple_of=2)
    """Height and width in pixels."""
    SCHEME: ClassVar = "portrait-world"

    def terms(self) -> str:
        """Return the project's own licence."""
        return "Apache-2.0"

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield one clip per seed; its folder and its fingerprint name the renderer's code."""
        code = _world_code()
        query = urlencode({"num_frames": self.num_frames, "size": self.size})
        directory = clips_directory / f"{self.SCHEME}-{code}-{digest(query)[:6]}"
        for seed in range(self.first_seed, self.first_seed + self.num_clips):
            uri = f"{self.SCHEME}:{seed}?{query}"
            yield Video(
                video_id=digest(uri),
                source_id=f"{self.SCHEME}/{seed:06d}",
                uri=uri,
                path=str((directory / f"portrait-{seed:06d}.mp4").absolute()),
                fingerprint=code,
                license=self.terms(),
                mixture="portrait",
                split_shots=False,
            )

    @classmethod
    def render(cls, uri: str, path: Path) -> None:
        """Write the clip of the seed and shape that the address holds."""
        from magicdistill.data_pipeline.sources.portrait_world import world  # slow to import

        address = urlsplit(uri)
        shape = {name: int(value) for name, value in parse_qsl(address.query)}
        world.write_clips(path.parent, [int(address.path)], **shape)


def _world_code() -> str:
    """Return a hash of the renderer, so that no clip of an older one is taken for its own."""
    from magicdistill.data_pipeline.media.video import X264_OPTIONS
    from magicdistill.data_pipeline.sources.portrait_world import world

    files = sorted(Path(world.__file__).parent.glob("*.py"))
    code = b"".join(file.read_bytes() for file in files)
    return sha256(code + str(X264_OPTIONS).encode()).hexdigest()[:12]
