"""Write the captions of clips from a few of their frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import SecretStr

from magicdistill.data_pipeline.captioning.base import REFUSED, Answer, WriterError
from magicdistill.data_pipeline.captioning.captions import CAPTION, CaptionScorer
from magicdistill.data_pipeline.captioning.text_measures import measure
from magicdistill.data_pipeline.config import DataConfig, Decoder
from magicdistill.data_pipeline.media.frame_ranges import cropped
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import VideoError, read_frames
from magicdistill.data_pipeline.rows import (
    CLIP_SCHEMA,
    UNREACHABLE,
    Array,
    ClipRow,
    clips_from_table,
    clips_to_table,
    is_temporary,
)
from magicdistill.data_pipeline.scorers.base import middles
from magicdistill.data_pipeline.sources.fetching import Scratch

BOX = "box"
"""Column of the crop that is shown, which goes along with the clips: without black bars where the
policy cuts them off."""
MAX_UNANSWERED = 32
"""Clips one after the other without an answer after which the writer is given up."""


@dataclass(frozen=True)
class CaptionJob:
    """Everything that a writing process needs."""

    scorer: CaptionScorer
    version: str
    """Version of the scorer where the clips were chosen."""
    decoder: Decoder
    key: SecretStr | None

    @classmethod
    def prepare(cls, config: DataConfig) -> "CaptionJob":
        """Return the job of a config with captions.

        Raises:
            WriterError: if the writer's key is missing or its server does not answer.
        """
        assert config.captions is not None
        scorer, writer = CaptionScorer(captions=config.captions), config.captions.writer
        writer.demand_ready()
        return cls(scorer, scorer.version, config.decoder, writer.key())


class Caption:
    """Adds captions to tables of clips; a clip without an answer becomes a failed row."""

    def __init__(self, job: CaptionJob) -> None:
        captions, decoder = job.scorer.captions, job.decoder
        if job.scorer.version != job.version:
            raise RuntimeError("data.captions.writer: the model's files changed meanwhile")
        self._captions, self._version = captions, job.version
        self._writer = captions.writer.open(captions.task, job.key)
        self._sandbox = Sandbox(decoder.timeout_s, decoder.num_attempts)
        self._scratch = Scratch()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table of clips with captions.

        Args:
            table: clips, and the column BOX.
        """
        clips = clips_from_table(table.select(CLIP_SCHEMA.names))
        looks = [
            self._look(clip, tuple(box))
            for clip, box in zip(clips, table[BOX].to_pylist(), strict=True)
        ]
        self._scratch.clear()
        answers = iter(self._writer.write([look for look in looks if not isinstance(look, str)]))
        rows = [
            self._captioned(clip, Answer(failure=look) if isinstance(look, str) else next(answers))
            for clip, look in zip(clips, looks, strict=True)
        ]
        return clips_to_table(rows)

    def _look(self, clip: ClipRow, box: tuple[int, ...]) -> list[Array] | str:
        """Return a clip's frames, or the reason why there are none."""
        try:
            path = self._scratch.fetch(clip.video.uri, clip.video.path)
        except VideoError as error:
            return str(error)
        shape = self._captions.num_frames, self._captions.long_side
        outcome = self._sandbox.call(frames_of, clip, box, path, *shape)
        return outcome.failure.removeprefix("VideoError: ") or outcome.value

    def _captioned(self, clip: ClipRow, answer: Answer) -> ClipRow:
        scores = dict(answer.costs)
        if not answer.failure:
            scores |= {**measure(answer.text), "cut": float(answer.is_cut)}
        return replace(
            clip,
            failure=answer.failure and f"{CAPTION}: {answer.failure}",
            scores=clip.scores | {f"{CAPTION}.{name}": value for name, value in scores.items()},
            scorers=clip.scorers | {CAPTION: self._version},
            blobs=clip.blobs | {CAPTION: answer.text.encode()},
        )


def frames_of(
    clip: ClipRow, box: tuple[int, ...], path: Path, num_frames: int, long_side: int
) -> list[Array]:
    """Return the middle frames of equal parts of a clip, uint8 RGB, each once.

    Args:
        clip: the clip.
        box: left, top, right and bottom of what is shown in pixels; empty is the whole frame.
        path: its file.
        num_frames: number of parts.
        long_side: largest long side of what is returned, in pixels.

    Raises:
        VideoError: if one of the frames cannot be decoded.
    """
    numbers = sorted({*middles(clip.start, clip.stop, num_frames)})
    return [_reduced(cropped(frame, box), long_side) for frame in read_frames(path, numbers)]


def _reduced(frame: Array, long_side: int) -> Array:
    image = Image.fromarray(frame)
    image.thumbnail((long_side, long_side))
    return np.asarray(image)


class Patience:
    """Ends the stage where a writer answers nobody, instead of failing every clip."""

    def __init__(self, job: CaptionJob) -> None:
        self._writer = job.scorer.captions.writer
        self._num_unanswered = 0

    def watch(self, failures: Sequence[str]) -> None:
        """Note why clips have no caption, empty where they have one.

        Raises:
            WriterError: if the writer refuses, or has not answered MAX_UNANSWERED clips in a row.
        """
        for failure in failures:
            is_the_writers = is_temporary(failure)
            self._num_unanswered = self._num_unanswered + 1 if is_the_writers else 0
            is_refused = f"{UNREACHABLE}: {REFUSED}: " in failure
            if is_refused or self._num_unanswered >= MAX_UNANSWERED:
                raise WriterError(
                    self._writer.identity()["model"],
                    f"{failure}; {self._num_unanswered} clips in a row have no caption. What is "
                    "written is kept: mend it and give the same command again",
                )
