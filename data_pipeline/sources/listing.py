"""List the videos of every kind of source."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlencode

from magicdistill.data_pipeline.io import object_stores
from magicdistill.data_pipeline.media.video import VIDEO_SUFFIXES, X264_OPTIONS
from magicdistill.data_pipeline.rows import Video, digest
from magicdistill.data_pipeline.sources import (
    celebv_hq,
    hdtf,
    json_lines,
    koala,
    package_clips,
    talkvid,
    vbench_i2v,
    vfhq,
)
from magicdistill.data_pipeline.sources.config import (
    CelebvHq,
    Folder,
    Hdtf,
    Inter4K,
    JsonLines,
    Koala,
    Manifest,
    PackageClips,
    PortraitWorld,
    Source,
    TalkVid,
    VbenchI2v,
    Vfhq,
)
from magicdistill.data_pipeline.sources.entries import Entry
from magicdistill.data_pipeline.sources.fetching import WORLD_SCHEME
from magicdistill.data_pipeline.sources.portrait_world import world

logger = logging.getLogger(__name__)

_BUCKET = re.compile(f"{object_stores.REMOTE}://[^/]")
MISSING_FILE = "missing file"
MISSING = "missing"
"""State of a file that is not there."""
INTER4K_REJECTED = "left out: Inter4K's clips have 120 frames at 24 fps (the recipe's policy)"
INTER4K_TIME_SCALE = 60 / 24 / 2
"""Of every second frame of 60 per second, shown 24 times a second."""


def iter_videos(sources: Sequence[Source], clips_directory: Path) -> Iterator[Video]:
    """Yield the videos of all sources, each once, without opening any.

    Manifests are read as streams, so a million rows need little memory. What a manifest names and
    nobody can use is listed too, with its `fault`.

    Args:
        sources: what to list.
        clips_directory: where rendered sources put their files.

    Raises:
        FileNotFoundError: if a folder or manifest does not exist or a package's videos are not
            installed.
        ValueError: if a manifest has another format.
    """
    seen: set[str] = set()
    for source in sources:
        found: Counter[str] = Counter()
        for video in _list_source(source, clips_directory):
            twice = video.video_id in seen
            found["listed before" if twice else video.fault.partition(":")[0] or "to read"] += 1
            if not twice:
                seen.add(video.video_id)
                yield video
        logger.info("source %s: %s", source.kind, dict(found))


def _list_source(source: Source, clips_directory: Path) -> Iterator[Video]:
    match source:
        case PortraitWorld():
            return _list_world(source, clips_directory)
        case PackageClips():
            return _list_package()
        case Folder():
            return _list_folder(source)
        case Inter4K():
            return _list_inter4k(source)
        case JsonLines():
            return _list_lines(source)
        case VbenchI2v():
            return _list_pairs(source)
        case Koala() | Hdtf() | Vfhq() | CelebvHq() | TalkVid():
            return _list_manifest(source, _entries(source))
        case _:
            raise TypeError(f"nothing lists the source {source.kind}")


def _entries(source: Manifest) -> Iterator[Entry]:
    match source:
        case Koala():
            return koala.entries(source)
        case Hdtf():
            return hdtf.entries(source)
        case Vfhq():
            return vfhq.entries(source)
        case CelebvHq():
            return celebv_hq.entries(source)
        case TalkVid():
            return talkvid.entries(source)


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
    files = sorted(Path(world.__file__).parent.glob("*.py"))
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
            fingerprint=object_stores.local_state(path) or MISSING,
            license=package_clips.LICENSE,
            mixture=mixture,
            split_shots=True,
        )


def _list_folder(source: Folder) -> Iterator[Video]:
    folder = object_stores.Folder(source.path)
    for name in folder.names():
        uri, state = folder.uri(name), folder.state(name)
        yield Video(
            video_id=digest(uri, *_shots(source.split_shots)),
            source_id=f"folder/{source.label}/{name}",
            uri=uri,
            path=folder.path(name),
            fingerprint=state or MISSING,
            license=source.license,
            mixture=source.mixture,
            split_shots=source.split_shots,
            fault="" if state else MISSING_FILE,  # a dangling link
        )


def _shots(split: bool) -> Sequence[str]:
    """Return what ids hold of a video whose shots are clips."""
    return ("split shots",) if split else ()


@dataclass(frozen=True)
class _Terms:
    """What the clips of a manifest have in common."""

    dataset: str
    license: str
    mixture: str
    is_cut: bool = False
    """The files are the clips: spans and crops do not apply any more."""
    split_shots: bool = False
    time_scale: float = 1.0


def _list_inter4k(source: Inter4K) -> Iterator[Video]:
    folder = object_stores.Folder(source.path)
    time_scale = INTER4K_TIME_SCALE if source.policy == "stride-2" else 1.0
    fault = INTER4K_REJECTED if source.policy == "reject" else ""
    terms = _Terms(source.kind, source.license, source.mixture, time_scale=time_scale)
    for number in range(1, source.num_clips + 1):
        entry = Entry(str(number), str(number), fault=fault)
        yield _video(entry, folder, f"{number}.mp4", terms)


def _list_manifest(source: Manifest, entries: Iterator[Entry]) -> Iterator[Video]:
    folder, pattern = object_stores.Folder(source.store.path), source.store.file_pattern
    is_cut = source.store.holds == "clips"
    terms = _Terms(source.kind, source.license, source.mixture, is_cut)
    for entry in entries:
        name = pattern.format(name=entry.name, video=entry.video)
        yield _video(entry, folder, name, terms)


def _list_lines(source: JsonLines) -> Iterator[Video]:
    open_folder = cache(object_stores.Folder)
    for line in json_lines.lines(source):
        root = source.root or line.manifest.rpartition("/")[0] or "."
        location, name = _split(line.uri, root)
        terms = _Terms(line.dataset, line.license, line.mixture, split_shots=source.split_shots)
        yield _video(line.entry, open_folder(location), name, terms)


def _list_pairs(source: VbenchI2v) -> Iterator[Video]:
    folder = vbench_i2v.pictures(source)
    terms = _Terms(source.kind, source.license, source.mixture, is_cut=True)
    for pair in vbench_i2v.pairs(source):
        entry = Entry(pair.prompt, pair.image, caption=pair.prompt, fault=pair.fault)
        yield _video(entry, folder, pair.image, terms)


def _split(uri: str, root: str) -> tuple[str, str]:
    """Return the folder and the name in it that a manifest's address means."""
    root = root.rstrip("/")
    if uri.startswith("file://"):
        uri = unquote(f"/{uri.removeprefix('file://').partition('/')[2]}")
    if uri.startswith(f"{root}/"):
        return root, uri.removeprefix(f"{root}/")
    folder, _, name = uri.rpartition("/")
    if _BUCKET.match(folder):
        return folder, name
    return ("/", uri.removeprefix("/")) if uri.startswith("/") else (root, uri)


def _video(entry: Entry, folder: object_stores.Folder, name: str, terms: _Terms) -> Video:
    """Return the row of a manifest's entry, whose file is called `name` below the folder."""
    fault = entry.fault or ("" if terms.is_cut else entry.span_fault)
    part = Entry(entry.name, entry.video) if terms.is_cut or fault else entry
    span = (part.t0_s, part.t1_s, part.crop, part.crop_frame, terms.time_scale)
    marks = (*_shots(terms.split_shots), *((fault,) if fault else ()))
    is_inside = _is_inside(name)
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


def _is_inside(name: str) -> bool:
    return bool(name) and name[0] != "/" and ".." not in name.split("/") and "\0" not in name
