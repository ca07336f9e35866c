"""List the videos of every kind of source, and bring one video to the local disk."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from magicdistill.data_pipeline.clips import Video, digest
from magicdistill.data_pipeline.config import Folder, PackageClips, PortraitWorld, Source
from magicdistill.data_pipeline.sources import package_clips, portrait_world
from magicdistill.data_pipeline.video import X264_OPTIONS, VideoError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
WORLD_SCHEME = "portrait-world"


def list_videos(sources: Sequence[Source], clips_directory: Path) -> list[Video]:
    """Return the videos of all sources, without opening any and without duplicates.

    Args:
        sources: what to list.
        clips_directory: where rendered sources put their files.

    Raises:
        FileNotFoundError: if a folder does not exist or a package's videos are not installed.
    """
    videos: dict[str, Video] = {}
    for source in sources:
        for video in _list_source(source, clips_directory):
            videos.setdefault(video.video_id, video)
    return list(videos.values())


def fetch(uri: str, path: str) -> Path:
    """Return a video's local file, rendering it first if its source does so.

    Raises:
        VideoError: if there is no such file.
    """
    file, address = Path(path), urlsplit(uri)
    if address.scheme == WORLD_SCHEME and not file.exists():
        shape = {name: int(value) for name, value in parse_qsl(address.query)}
        portrait_world.write_clips(file.parent, [int(address.path)], **shape)
    if not file.exists():
        raise VideoError("missing file")
    return file


def _list_source(source: Source, clips_directory: Path) -> Iterator[Video]:
    match source:
        case PortraitWorld():
            return _list_world(source, clips_directory)
        case PackageClips():
            return _list_package()
        case Folder():
            return _list_folder(source)


def _list_world(source: PortraitWorld, clips_directory: Path) -> Iterator[Video]:
    code = _world_code()
    query = urlencode({"num_frames": source.num_frames, "size": source.size})
    directory = clips_directory / f"{WORLD_SCHEME}-{code}-{digest(query)[:6]}"
    for seed in range(source.first_seed, source.first_seed + source.num_clips):
        uri = f"{WORLD_SCHEME}:{seed}?{query}"
        yield Video(
            video_id=digest(uri),
            source_id=f"{WORLD_SCHEME}/{seed:06d}",
            uri=uri,
            path=str((directory / f"portrait-{seed:06d}.mp4").absolute()),
            fingerprint=code,
            license="Apache-2.0",
            mixture="portrait",
            split_shots=False,
        )


def _world_code() -> str:
    """Return a hash of the renderer, so that no clip of an older one is taken for its own."""
    files = sorted(Path(portrait_world.__file__).parent.glob("portrait_*.py"))
    code = b"".join(file.read_bytes() for file in files)
    return sha256(code + str(X264_OPTIONS).encode()).hexdigest()[:12]


def _list_package() -> Iterator[Video]:
    for path, mixture in package_clips.find_clips():
        uri = f"package-clips:{path.name}"
        yield Video(
            video_id=digest(uri),
            source_id=f"package-clips/{path.stem}",
            uri=uri,
            path=str(path),
            fingerprint=_file_state(path),
            license=package_clips.LICENSE,
            mixture=mixture,
            split_shots=True,
        )


def _list_folder(source: Folder) -> Iterator[Video]:
    folder = source.path.expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"data source folder {folder} does not exist")
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        uri = path.as_uri()
        yield Video(
            video_id=digest(uri),
            source_id=f"folder/{folder.name}/{path.relative_to(folder).as_posix()}",
            uri=uri,
            path=str(path),
            fingerprint=_file_state(path),
            license=source.license,
            mixture=source.mixture,
            split_shots=source.split_shots,
        )


def _file_state(path: Path) -> str:
    """Return what changes when a file is replaced, without reading it."""
    if not path.exists():
        return "missing"  # a dangling link: recorded when it is scored
    state = path.stat()
    return f"{state.st_size}-{state.st_mtime_ns}"
