"""Find the clips of a video and take their cheap scores, in one pass over its frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.config import Decoder, Measures
from magicdistill.data_pipeline.media.frame_index import FrameIndex
from magicdistill.data_pipeline.media.frame_ranges import FrameRange, frame_range_of
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoError,
    decoder_of,
    frames_in,
    hash_content,
    probe,
)
from magicdistill.data_pipeline.rows import (
    ClipRow,
    Video,
    clips_to_table,
    digest,
    failed,
    videos_from_table,
)
from magicdistill.data_pipeline.scorers.base import RateScorer
from magicdistill.data_pipeline.scorers.registry import VIDEO_SCORES
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.stages.motion import MotionMeter
from magicdistill.data_pipeline.stages.run_scorers import Meter
from magicdistill.data_pipeline.stages.shots import ShotMeters, shot_meters, spans_between, trimmed


class Score:
    """Scores tables of videos; a file that cannot be read becomes a failed row."""

    def __init__(self, measures: Measures, decoder: Decoder) -> None:
        shot_meters(
            measures.shots
        )  # raises here if a package is missing, not as a failure of every video
        self._measures = measures
        self._sandbox = Sandbox(decoder.timeout_s, decoder.num_attempts)
        self._scratch = Scratch()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table of clips found in a table of videos; failures are rows, too."""
        clips = [clip for video in videos_from_table(table) for clip in self._score(video)]
        self._scratch.clear()
        return clips_to_table(clips)

    def _score(self, video: Video) -> Sequence[ClipRow]:
        if video.fault:
            return [failed(video, self._measures.version, video.fault)]
        try:
            path = self._scratch.fetch(video.uri, video.path)
        except VideoError as error:
            return [failed(video, self._measures.version, str(error))]
        outcome = self._sandbox.call(score_video, video, path, self._measures)
        if outcome.failure:
            reason = outcome.failure.removeprefix("VideoError: ")
            return [failed(video, self._measures.version, reason)]
        return outcome.value


@dataclass(frozen=True)
class _Decoded:
    """What the measures found in the frames that could be read from a file."""

    checksums: list[str]
    shots: ShotMeters
    motion: MotionMeter
    meters: Sequence[Meter]
    failure: str

    @property
    def num_frames(self) -> int:
        return len(self.checksums)


def score_video(video: Video, path: Path, measures: Measures) -> list[ClipRow]:
    """Return the clips of one video, whose file is at `path`, with their scores.

    Raises:
        VideoError: if the file is empty or no video, no frame can be decoded, the source's span or
            crop is outside the video, or no shot is longer than what is trimmed.
    """
    known = (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
    if path.suffix.lower() not in known:
        raise VideoError(f"unexpected file name: not one of {', '.join(known)}")
    if not path.stat().st_size:
        raise VideoError("empty file")
    index = probe(path)
    frame_range = frame_range_of(video, index)
    taken = _measure(path, index.fps, frame_range, measures)
    if not taken.num_frames:
        raise VideoError(taken.failure or "corrupt: no frames")
    cuts = taken.shots.cuts()
    if video.split_shots:
        spans, cuts = spans_between(cuts, taken.num_frames, measures.trim_frames), []
    else:
        start, stop = trimmed(cuts, taken.num_frames, measures.trim_frames)
        spans, cuts = [(start, stop)], [cut for cut in cuts if cut.is_inside(start, stop)]
    if not spans:
        raise VideoError("no shot outlasts trimming")
    content_hash, begin = hash_content(path), frame_range.start
    clips = [
        ClipRow(
            clip_id=digest(video.video_id, begin + start, begin + stop),
            video=video,
            measures=measures.version,
            start=begin + start,
            stop=begin + stop,
            content_hash=content_hash,
            decoder=decoder_of(path),
            width=frame_range.width,
            height=frame_range.height,
            fps=index.rate_within(begin + start, begin + stop) / video.time_scale,
            num_frames_header=frame_range.num_frames,
            num_frames_decoded=taken.num_frames,
            num_cuts=len(cuts),
            motion_px=taken.motion.mean_px(start, stop),
            crop=frame_range.crop,
        )
        for start, stop in spans
    ]
    return [_with_scores(clip, index, frame_range, taken) for clip in clips]


def _with_scores(
    clip: ClipRow, index: FrameIndex, frame_range: FrameRange, taken: _Decoded
) -> ClipRow:
    checksums = (taken.checksums[number - frame_range.start] for number in clip.checked_frames())
    clip = replace(clip, scores=_of_the_file(clip, index), frame_checksums="".join(checksums))
    for meter in taken.meters:
        clip = meter.add_to(clip)
    return clip


def _of_the_file(clip: ClipRow, index: FrameIndex) -> dict[str, float | None]:
    """Return what a file says of itself that a policy may refuse, 0 or 1."""
    found = index.is_hdr, index.is_interlaced, index.varies_within(clip.start, clip.stop)
    return {f"video.{name}": float(flag) for name, flag in zip(VIDEO_SCORES, found, strict=True)}


def _measure(path: Path, fps: float, frame_range: FrameRange, measures: Measures) -> _Decoded:
    """Read a file once, to its end or to the first frame that cannot be decoded."""
    shots = shot_meters(measures.shots)
    motion = MotionMeter(fps, measures.motion_short_side, measures.motion_fps)
    meters = [
        Meter(scorer, fps)
        for scorer in measures.scorers
        if isinstance(scorer, RateScorer) and not scorer.COSTLY
    ]
    taken = _Decoded([], shots, motion, meters, "")
    try:
        for decoded in frames_in(path, frame_range.start, frame_range.stop):
            frame = decoded.for_scorers(frame_range.crop)
            shots.update(frame)
            motion.update(frame)
            for meter in meters:
                meter.update(decoded.number, frame)
            taken.checksums.append(decoded.checksum)
    except VideoError as error:
        return replace(taken, failure=str(error))
    return taken
