"""Thumbnails of clips, decoded once, in a child process, and kept as files."""

import io
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

from PIL import Image

from magicdistill.data_pipeline.config import Decoder
from magicdistill.data_pipeline.io.query import text
from magicdistill.data_pipeline.io.whole_files import write_whole
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.media.frame_ranges import cropped
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import VideoError, read_frames
from magicdistill.data_pipeline.rows import ClipRow, digest
from magicdistill.data_pipeline.selection.judged_clips import JudgedClips
from magicdistill.data_pipeline.sources.fetching import Scratch

FOLDER = "thumbnails"
HEIGHT_PX = 96
MAX_WIDTH_PX = 2 * HEIGHT_PX


def choose(judged: JudgedClips, status: str, most: int) -> list[Decision]:
    """Return at most `most` decisions, taken in turn from every reason, or mixture if accepted.

    Inside a group they are ordered by a hash, so that every run chooses the same ones.
    """
    group = "CASE WHEN len(reasons) > 0 THEN split_part(reasons[1], ':', 1) ELSE mixture END"
    groups = judged.database.rows(
        f"SELECT arg_min(clip_id, sha256(clip_id), {most}) FROM {judged.sql} "
        f"WHERE status = {text(status)} GROUP BY {group} ORDER BY min(sha256(clip_id))"
    )
    turns = chain.from_iterable(zip_longest(*(ids for (ids,) in groups)))
    chosen = [clip_id for clip_id in turns if clip_id is not None][:most]
    return sorted(judged.of_clips(chosen), key=lambda decision: chosen.index(decision.clip.clip_id))


def thumbnails(clips: Sequence[ClipRow], root: Path, decoder: Decoder) -> list[bytes]:
    """Return the middle frame of each clip as JPEG; empty if it cannot be decoded.

    Args:
        clips: the clips to show.
        root: the folder of clips, ledger and latents; thumbnails are kept in its `thumbnails`.
        decoder: limits of the child process.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"{clip.clip_id}-{digest(clip.video.fingerprint, clip.crop)}.jpg" for clip in clips
    ]
    if not all(path.exists() for path in paths):
        with Sandbox(decoder.timeout_s, decoder.num_attempts) as sandbox, Scratch() as scratch:
            for clip, path in zip(clips, paths, strict=True):
                if not path.exists():
                    _make(clip, path, sandbox, scratch)
    return [path.read_bytes() if path.exists() else b"" for path in paths]


def _make(clip: ClipRow, target: Path, sandbox: Sandbox, scratch: Scratch) -> None:
    """Write a clip's thumbnail; an empty file records that its frame cannot be decoded."""
    try:
        path = scratch.fetch(clip.video.uri, clip.video.path)
    except VideoError:  # no file is written: a later run may reach the video
        return
    picture = sandbox.call(_picture, clip, path).value or b""
    write_whole(target, lambda temporary: temporary.write_bytes(picture))


def _picture(clip: ClipRow, path: Path) -> bytes:
    (frame,) = read_frames(path, [(clip.start + clip.stop) // 2])
    image = Image.fromarray(cropped(frame, clip.crop))
    image.thumbnail((MAX_WIDTH_PX, HEIGHT_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()
