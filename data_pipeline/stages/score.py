"""Score a video: one pass over its frames feeds every measure; nothing is decided here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.child import Child
from magicdistill.data_pipeline.clips import (
    ClipRow,
    Video,
    clips_to_table,
    digest,
    failed,
    videos_from_table,
)
from magicdistill.data_pipeline.config import Decoder, Measures
from magicdistill.data_pipeline.sources.listing import VIDEO_SUFFIXES, fetch
from magicdistill.data_pipeline.stages.motion import MotionMeter
from magicdistill.data_pipeline.stages.shots import ShotMeter, spans_between
from magicdistill.data_pipeline.video import DECODERS, Header, VideoError, decode, probe


class Score:
    """Scores tables of videos; a file that cannot be read becomes a failed row."""

    def __init__(self, measures: Measures, decoder: Decoder) -> None:
        self._measures = measures
        self._child = Child(decoder.timeout_s, decoder.num_attempts)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table of clips found in a table of videos."""
        clips = [clip for video in videos_from_table(table) for clip in self._score(video)]
        return clips_to_table(clips)

    def _score(self, video: Video) -> Sequence[ClipRow]:
        outcome = self._child.call(score_video, video, self._measures)
        if outcome.failure:
            reason = outcome.failure.removeprefix("VideoError: ")
            return [failed(video, self._measures.version, reason)]
        return outcome.value


@dataclass(frozen=True)
class _Pass:
    """What one decoder made of a file."""

    decoder: str
    num_frames: int
    shots: ShotMeter
    motion: MotionMeter
    failure: str


def score_video(video: Video, measures: Measures) -> list[ClipRow]:
    """Return the clips of one video with their scores.

    Raises:
        VideoError: if the file is missing, empty, no video, or not one frame can be decoded.
    """
    if Path(video.path).suffix.lower() not in VIDEO_SUFFIXES:
        raise VideoError(f"unexpected file name: not one of {', '.join(VIDEO_SUFFIXES)}")
    path = fetch(video.uri, video.path)
    if not path.stat().st_size:
        raise VideoError("empty file")
    header = probe(path)
    taken = _measure(path, header, measures)
    if not taken.num_frames:
        raise VideoError(taken.failure or "corrupt: no frames")
    cuts = taken.shots.cuts()
    spans = [(0, taken.num_frames)]
    if video.split_shots:
        spans, cuts = spans_between(cuts, taken.num_frames, measures.trim_frames), []
    content_hash = _content_hash(path)
    return [
        ClipRow(
            clip_id=digest(video.video_id, start, stop),
            video_id=video.video_id,
            source_id=video.source_id,
            uri=video.uri,
            path=video.path,
            fingerprint=video.fingerprint,
            license=video.license,
            mixture=video.mixture,
            measures=measures.version,
            start=start,
            stop=stop,
            content_hash=content_hash,
            decoder=taken.decoder,
            width=header.width,
            height=header.height,
            fps=header.fps,
            num_frames_header=header.num_frames or taken.num_frames,
            num_frames_decoded=taken.num_frames,
            num_cuts=len(cuts),
            motion_px=taken.motion.mean_px(start, stop),
        )
        for start, stop in spans
    ]


def _measure(path: Path, header: Header, measures: Measures) -> _Pass:
    """Decode with each decoder in turn until one reads to the end; else keep the longest pass."""
    passes: list[_Pass] = []
    for decoder in DECODERS:
        shots = ShotMeter()
        motion = MotionMeter(header.fps, measures.motion_short_side, measures.motion_fps)
        num_frames, failure = 0, ""
        try:
            for frame in decode(path, decoder):
                shots.update(frame)
                motion.update(frame)
                num_frames += 1
        except VideoError as error:
            failure = str(error)
        passes.append(_Pass(decoder, num_frames, shots, motion, failure))
        if not failure:
            break
    # On damage decord stops at a frame that differs from run to run; on a tie PyAV is kept.
    return max(reversed(passes), key=lambda taken: taken.num_frames)


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
