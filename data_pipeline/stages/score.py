"""Find the clips of a video and take their cheap scores, in one pass over its frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.config import Decoder, Measures
from magicdistill.data_pipeline.media.frame_ranges import FrameRange, cropped, frame_range_of
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoError,
    decode,
    decoders_of,
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
from magicdistill.data_pipeline.scorers.base import Frame, RateScorer
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
    """What the measures found in the frames that one decoder read from a file."""

    decoder: str
    num_frames: int
    shots: ShotMeters
    motion: MotionMeter
    meters: Sequence[Meter]
    failure: str


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
    header = probe(path)
    frame_range = frame_range_of(video, header)
    taken = _measure(path, header.fps, frame_range, measures)
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
    content_hash = hash_content(path)
    clips = [
        ClipRow(
            clip_id=digest(video.video_id, frame_range.start + start, frame_range.start + stop),
            video=video,
            measures=measures.version,
            start=frame_range.start + start,
            stop=frame_range.start + stop,
            content_hash=content_hash,
            decoder=taken.decoder,
            width=frame_range.width,
            height=frame_range.height,
            fps=header.fps / video.time_scale,
            num_frames_header=frame_range.num_frames or taken.num_frames,
            num_frames_decoded=taken.num_frames,
            num_cuts=len(cuts),
            motion_px=taken.motion.mean_px(start, stop),
            crop=frame_range.crop,
        )
        for start, stop in spans
    ]
    return [_with_scores(clip, taken.meters) for clip in clips]


def _with_scores(clip: ClipRow, meters: Sequence[Meter]) -> ClipRow:
    for meter in meters:
        clip = meter.add_to(clip)
    return clip


def _measure(path: Path, fps: float, frame_range: FrameRange, measures: Measures) -> _Decoded:
    """Try each decoder until one reads to the end; else keep the attempt with the most frames."""
    attempts: list[_Decoded] = []
    for decoder in decoders_of(path):
        shots = shot_meters(measures.shots)
        motion = MotionMeter(fps, measures.motion_short_side, measures.motion_fps)
        meters = [
            Meter(scorer, fps)
            for scorer in measures.scorers
            if isinstance(scorer, RateScorer) and not scorer.COSTLY
        ]
        num_frames, failure = 0, ""
        try:
            for whole in decode(path, decoder, frame_range.start, frame_range.stop):
                frame = cropped(whole, frame_range.crop)
                shots.update(frame)
                motion.update(frame)
                shared = Frame(frame)
                for meter in meters:
                    meter.update(frame_range.start + num_frames, shared)
                num_frames += 1
        except VideoError as error:
            failure = str(error)
        attempts.append(_Decoded(decoder, num_frames, shots, motion, meters, failure))
        if not failure:
            break
    # decord stops at a random frame of a damaged file; on a tie PyAV, the last tried, is kept.
    return max(reversed(attempts), key=lambda taken: taken.num_frames)
