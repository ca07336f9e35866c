"""What is known about every clip that was ever scored: the source of truth for resuming."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from magicdistill.data_pipeline.clips import (
    CLIP_SCHEMA,
    ClipRow,
    Video,
    clips_from_table,
    clips_to_table,
    digest,
)
from magicdistill.data_pipeline.policy import Decision


class Ledger:
    """Scores and failures as Parquet parts that appear whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._scores = directory / "scores"
        self._decisions = directory / "decisions"
        self._scores.mkdir(parents=True, exist_ok=True)
        self._decisions.mkdir(exist_ok=True)

    def append(self, clips: Sequence[ClipRow]) -> None:
        """Commit rows as one part; all clips of a video belong into the same part."""
        name = digest(*(f"{c.clip_id} {c.fingerprint} {c.measures} {c.failure}" for c in clips))
        write_parquet(clips_to_table(clips), self._scores / f"{name}.parquet")

    def scored(self, videos: Iterable[Video], measures: str) -> dict[str, list[ClipRow]]:
        """Return the clips of those videos that were scored in their present state.

        Args:
            videos: what the sources list now.
            measures: version of the settings under which scores must have been taken.

        Returns:
            Clips by video id, with the paths of the present listing.
        """
        present = {video.video_id: video for video in videos}
        clips: dict[str, ClipRow] = {}
        for clip in self._read():
            video = present.get(clip.video_id)
            if not video or (clip.fingerprint, clip.measures) != (video.fingerprint, measures):
                continue
            known = clips.get(clip.clip_id)
            if not known or not known.failure:  # a failure, once recorded, stays
                clips[clip.clip_id] = replace(clip, path=video.path)
        by_video: dict[str, list[ClipRow]] = {}
        for clip in clips.values():
            by_video.setdefault(clip.video_id, []).append(clip)
        return {
            video_id: sorted(found, key=lambda clip: clip.start)
            for video_id, found in by_video.items()
        }

    def write_decisions(self, name: str, decisions: Sequence[Decision]) -> Path:
        """Store what a policy made of the scores and return the file."""
        rows = [
            {
                "clip_id": decision.clip.clip_id,
                "source_id": decision.clip.source_id,
                "status": decision.status,
                "reasons": list(decision.reasons),
            }
            for decision in decisions
        ]
        path = self._decisions / f"{name}.parquet"
        write_parquet(pa.Table.from_pylist(rows, schema=_DECISION_SCHEMA), path)
        return path

    def _read(self) -> list[ClipRow]:
        parts = sorted(self._scores.glob("*.parquet"))
        if not parts:
            return []
        dataset = pyarrow.dataset.dataset(parts, schema=CLIP_SCHEMA, format="parquet")
        return clips_from_table(dataset.to_table())


_DECISION_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("status", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a table under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, **options)
    os.replace(temporary, path)
