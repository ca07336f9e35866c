"""Run scorers: cheap ones while a video is searched for shots, the others on known clips."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.config import Decoder, Measures
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import VideoError, frames_at
from magicdistill.data_pipeline.rows import ClipRow, clips_from_table, clips_to_table
from magicdistill.data_pipeline.scorers.base import ABSENT, Frame, RateScorer, Scorer
from magicdistill.data_pipeline.sources.fetching import Scratch


class Meter:
    """Feeds a cheap scorer the frames of a whole video and keeps what it saw for any clip of it."""

    def __init__(self, scorer: RateScorer, fps: float) -> None:
        self._scorer, self._fps, self._step = scorer, fps, scorer.step(fps)
        self._looks: dict[int, Any] = {}
        self._last: Frame | None = None

    def update(self, index: int, frame: Frame) -> None:
        """Take the frame at `index`; call with ascending indices."""
        if index % self._step == 0:
            self._looks[index] = self._scorer.look(frame, self._last)
            self._last = frame

    def add_to(self, clip: ClipRow) -> ClipRow:
        """Return the clip with the scorer's result for its span."""
        indices = self._scorer.indices(clip.start, clip.stop, self._fps)
        looks = [self._looks[index] for index in indices if index in self._looks]
        return _with_result(clip, self._scorer, looks, self._step / self._fps)


class AddScores:
    """Adds missing scores to tables of clips; a clip that cannot be scored becomes a failed row."""

    def __init__(self, scorers: Sequence[Scorer], decoder: Decoder, has_gpu: bool = False) -> None:
        """Load the models once.

        Args:
            scorers: the scorers to run; absent ones are skipped.
            decoder: limits of the child process in which they run.
            has_gpu: whether a GPU is reserved for this process.

        Raises:
            RuntimeError: if a scorer cannot run at all, which is no clip's fault.
        """
        self._scorers = {scorer.kind: scorer for scorer in scorers}
        self._versions = versions_of(scorers)
        present = [s for s in scorers if not self._versions[s.kind].startswith(ABSENT)]
        load = partial(try_out, present, has_gpu)
        self._sandbox = Sandbox(decoder.timeout_s, decoder.num_attempts, load)
        self._sandbox.start()
        self._scratch = Scratch()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table of clips with the scores that they lack."""
        clips = [self._add(clip) for clip in clips_from_table(table)]
        self._scratch.clear()
        return clips_to_table(clips)

    def _add(self, clip: ClipRow) -> ClipRow:
        scorers = [self._scorers[kind] for kind in lacking(clip, self._versions)]
        try:
            path = self._scratch.fetch(clip.video.uri, clip.video.path)
        except VideoError as error:
            return _failed(clip, scorers, str(error))
        outcome = self._sandbox.call(score_clip, clip, path, scorers)
        return _failed(clip, scorers, outcome.failure) if outcome.failure else outcome.value


def versions_of(scorers: Sequence[Scorer]) -> dict[str, str]:
    """Return the version of each scorer by its kind, as in `ClipRow.scorers`."""
    return {scorer.kind: scorer.version for scorer in scorers}


def lacking(clip: ClipRow, versions: Mapping[str, str]) -> list[str]:
    """Return the kinds of present scorers that have not seen the clip in that version."""
    return [
        kind
        for kind, version in versions.items()
        if clip.scorers.get(kind) != version and not version.startswith(ABSENT)
    ]


def score_clip(clip: ClipRow, path: Path, scorers: Sequence[Scorer]) -> ClipRow:
    """Return the clip with the results of scorers; only the frames that they need are decoded.

    Raises:
        VideoError: if one of the frames cannot be decoded.
    """
    fps = clip.fps * clip.video.time_scale
    wanted = [scorer.indices(clip.start, clip.stop, fps) for scorer in scorers]
    indices = sorted(set().union(*wanted))
    looks: list[dict[int, Any]] = [{} for _ in scorers]
    last: list[Frame | None] = [None] * len(scorers)
    for index, decoded in zip(indices, frames_at(path, indices), strict=True):
        frame = decoded.for_scorers(clip.crop)
        for number, scorer in enumerate(scorers):
            if index in wanted[number]:
                looks[number][index] = scorer.look(frame, last[number])
                last[number] = frame
    for scorer, chosen, seen in zip(scorers, wanted, looks, strict=True):
        step_s = (chosen[1] - chosen[0]) / fps if len(chosen) > 1 else 0.0
        clip = _with_result(clip, scorer, [seen[index] for index in chosen], step_s)
    return clip


def gpus_for(scorers: Sequence[Scorer], measures: Measures) -> float:
    """Return the number of GPUs that a process for these scorers reserves; 0 if none uses one."""
    used = any(s.ON_GPU and not s.version.startswith(ABSENT) for s in scorers)
    return measures.num_gpus_per_actor if used else 0.0


def try_out(scorers: Sequence[Scorer], has_gpu: bool) -> None:
    """Load every scorer's model by showing it a grey frame.

    Without a reserved GPU, the machine's GPUs are hidden from this process.

    Raises:
        RuntimeError: if a scorer cannot run, naming it, or if the reserved GPU is not found.
    """
    if has_gpu:
        _demand_gpu()
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    frame = Frame(np.full((256, 256, 3), 128, dtype=np.uint8))
    for scorer in scorers:
        try:
            scorer.look(frame, frame)
        except Exception as error:
            reason = f"scorer {scorer.kind!r} of the recipe cannot run: {type(error).__name__}"
            raise RuntimeError(f"{reason}: {error}") from error


def _demand_gpu() -> None:
    import torch  # seconds to import: only where networks need it

    if not torch.cuda.is_available():
        raise RuntimeError("measures.num_gpus_per_actor asks for a GPU, and PyTorch finds none")


def _with_result(clip: ClipRow, scorer: Scorer, looks: Sequence[Any], step_s: float) -> ClipRow:
    values = dict.fromkeys(scorer.SCORES) | (scorer.summary(looks, step_s) if looks else {})
    blob = scorer.blob(looks) if looks else b""
    return replace(
        clip,
        scores=clip.scores | {f"{scorer.kind}.{name}": value for name, value in values.items()},
        scorers=clip.scorers | {scorer.kind: scorer.version},
        blobs=clip.blobs | ({scorer.kind: blob} if blob else {}),
    )


def _failed(clip: ClipRow, scorers: Sequence[Scorer], reason: str) -> ClipRow:
    """Return a failed row, which counts only while the recipe asks for the same scorers."""
    seen = clip.scorers | versions_of(scorers)
    return replace(clip, scorers=seen, failure=f"scores: {reason.removeprefix('VideoError: ')}")
