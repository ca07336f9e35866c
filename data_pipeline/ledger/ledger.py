"""The ledger: files that record every clip ever scored, from which a later run resumes."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc

from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    list_files,
    list_sizes,
    read_files,
    remove,
    write_parquet,
)
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.rows import (
    CLIP_COLUMNS,
    CLIP_SCHEMA,
    STORED,
    ClipRow,
    Video,
    clips_from_table,
    clips_to_table,
    digest,
)
from magicdistill.data_pipeline.scorers.base import ABSENT, Scorer

MAX_SMALL_PARTS = 64
"""With more small parts than these, they are merged."""
SMALL_PART_BYTES = 16 << 20
"""A part below this size is small."""
MERGED_BYTES = 32 << 20
"""Small parts are merged up to about this total size."""


class Ledger:
    """Scores and failures of clips, as Parquet files ("parts") that appear whole or not at all.

    Parts are only added, never edited, so that many processes and interrupted runs can write
    without locks. The same clip may therefore stand in many parts: `scored` brings its rows
    together in a way that depends neither on the order of parts nor on repeated rows.
    """

    def __init__(self, directory: AnyPath) -> None:
        self._scores = directory / "scores"
        self._decisions = directory / "decisions"
        self._scorers = directory / "scorers"

    def append(self, clips: Sequence[ClipRow]) -> None:
        """Commit rows as one part; all clips found in one video must be in the same call."""
        if not clips:
            return
        name = digest(
            *(
                f"{c.clip_id} {c.video.fingerprint} {c.measures} {c.scorers} {c.failure}"
                for c in clips
            )
        )
        write_parquet(clips_to_table(clips), self._scores / f"{name}.parquet")

    def scored(
        self, videos: Iterable[Video], measures: str, scorers: Sequence[Scorer] = ()
    ) -> dict[str, list[ClipRow]]:
        """Return the recorded clips of those videos whose content has not changed since.

        Args:
            videos: the videos that the sources list now.
            measures: version of the settings under which the clips must have been found.
            scorers: scorers whose results are wanted; results of their other versions are ignored.

        Returns:
            Clips by video id, in the order of their first frames. Address, caption, mixture and
            the like come from the present listing, scores from all rows of the clip together;
            the scores of an absent scorer are None.
        """
        present = {video.video_id: video for video in videos}
        versions = {scorer.kind: scorer.version for scorer in scorers}
        clips: dict[str, ClipRow] = {}
        results: dict[str, _Results] = {}
        for clip in self._read():
            video = present.get(clip.video.video_id)
            if not video or clip.video.fingerprint != video.fingerprint:
                continue
            if clip.scorers:
                results.setdefault(clip.clip_id, _Results()).add(clip, versions)
            if clip.measures != measures or _is_stale(clip, versions):
                continue
            known = clips.get(clip.clip_id)
            clips[clip.clip_id] = _stronger(clip, known) if known else clip
        absent = _absent(scorers, versions)
        by_video: dict[str, list[ClipRow]] = {}
        for clip in clips.values():
            video, found = present[clip.video.video_id], results.get(clip.clip_id, absent)
            row = replace(
                clip,
                # The recorded source id stays: takedowns find all that a film left by it.
                video=replace(video, source_id=clip.video.source_id),
                scores=_of_the_file(clip) | absent.scores | found.scores,
                scorers=absent.scorers | found.scorers,
                blobs=found.blobs,
            )
            by_video.setdefault(clip.video.video_id, []).append(row)
        return {
            video_id: sorted(found, key=attrgetter("start", "clip_id"))
            for video_id, found in by_video.items()
        }

    def describe(self, scorers: Sequence[Scorer]) -> None:
        """Write model, version and preprocessing of each scorer as JSON beside the scores."""
        for scorer in scorers:
            path = self._scorers / f"{scorer.kind}-{scorer.version}.json"
            if scorer.version.startswith(ABSENT) or path.exists():
                continue
            write_text(path, json.dumps(scorer.describe(), indent=1))

    def write_decisions(self, name: str, decisions: Sequence[Decision]) -> AnyPath:
        """Write the decisions of one config as `<name>.parquet` and return that file."""
        rows = [
            {
                "clip_id": decision.clip.clip_id,
                "source_id": decision.clip.video.source_id,
                "status": decision.status,
                "reasons": list(decision.reasons),
            }
            for decision in decisions
        ]
        path = self._decisions / f"{name}.parquet"
        write_parquet(pa.Table.from_pylist(rows, schema=_DECISION_SCHEMA), path)
        return path

    def find(self, clip_ids: Collection[str]) -> list[ClipRow]:
        """Return all rows of some clips as they were recorded, without bringing them together."""
        wanted = pc.field("clip_id").isin(pa.array(list(clip_ids), pa.string()))
        return clips_from_table(self._table().filter(wanted))

    def parts(self) -> list[AnyPath]:
        """Return the committed files of scores and failures."""
        return list_files(self._scores, "*.parquet")

    def decision_files(self) -> list[AnyPath]:
        """Return the files of decisions, one for each config."""
        return list_files(self._decisions, "*.parquet")

    def compact(self) -> int:
        """Merge small parts, if there are many, and return how many were merged.

        The merged part is written before the small ones are removed. A process that is killed in
        between leaves rows twice, which changes nothing, and loses none.

        Raises:
            OSError: if a part cannot be read or fails its checksums, which merging would hide.
        """
        sizes = list_sizes(self._scores, "*.parquet")
        small = {part: size for part, size in sizes.items() if size < SMALL_PART_BYTES}
        if len(small) <= MAX_SMALL_PARTS:
            return 0
        for parts in _batches(small):
            name = digest(*(part.name for part in parts))
            table = read_files(parts, CLIP_SCHEMA, checked=True)
            write_parquet(table, self._scores / f"{name}.parquet")
            for part in parts:
                remove(part)
        return len(small)

    def _read(self) -> list[ClipRow]:
        return clips_from_table(self._table())

    def _table(self) -> pa.Table:
        parts = self.parts()
        try:
            return read_files(parts, CLIP_SCHEMA)
        except FileNotFoundError:
            if self.parts() == parts:
                raise
            return self._table()  # another process has merged parts since they were listed


def _batches(sizes: Mapping[AnyPath, int]) -> Iterator[list[AnyPath]]:
    """Yield groups of parts to merge, each of at most MERGED_BYTES in all."""
    batch: list[AnyPath] = []
    num_bytes = 0
    for part, size in sizes.items():
        if num_bytes + size > MERGED_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(part)
        num_bytes += size
    yield batch


_OF_OTHERS = {
    *("uri", "path", "license", "mixture", "entry", "caption", "imported_scores"),
    *("scores", "scorers", "blobs"),
}
"""Columns that the present listing fills in, or that are brought together from many rows."""
_findings = attrgetter(
    *(
        f"video.{name}" if name in STORED else name
        for name in CLIP_COLUMNS
        if name not in _OF_OTHERS
    )
)


def _stronger(one: ClipRow, other: ClipRow) -> ClipRow:
    """Return which of two contradicting rows counts: a failure, else the one of larger text.

    Any fixed order would do; this one does not depend on which row is read first.
    """
    if _findings(one) == _findings(other):
        return one
    return max(one, other, key=lambda clip: (bool(clip.failure), repr(_findings(clip))))


@dataclass
class _Results:
    """The results of scorers for one clip, gathered from all its rows."""

    scores: dict[str, float | None] = field(default_factory=dict)
    scorers: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, clip: ClipRow, versions: Mapping[str, str]) -> None:
        """Add a row's results of the wanted versions; of two the one of higher rank stays."""
        if clip.failure:
            return
        wanted = {
            kind
            for kind, version in clip.scorers.items()
            if versions.get(kind) == version
            and (kind not in self.scorers or _rank(clip, kind) > _rank(self, kind))
        }
        self.scorers |= {kind: versions[kind] for kind in wanted}
        self.scores |= {
            name: value for name, value in clip.scores.items() if name.partition(".")[0] in wanted
        }
        self.blobs |= {kind: blob for kind, blob in clip.blobs.items() if kind in wanted}


def _of_the_file(clip: ClipRow) -> dict[str, float | None]:
    """Return what a file says of itself, which no scorer measures."""
    return {name: value for name, value in clip.scores.items() if name.startswith("video.")}


def _rank(row: ClipRow | _Results, kind: str) -> str:
    """Return the text that orders two results of one version of a scorer; the larger one stays."""
    scores = sorted(item for item in row.scores.items() if item[0].partition(".")[0] == kind)
    return repr((scores, row.blobs.get(kind)))


def _is_stale(clip: ClipRow, versions: Mapping[str, str]) -> bool:
    """Tell whether a clip failed under other scorers than the wanted ones."""
    return bool(clip.failure) and any(versions.get(k) != v for k, v in clip.scorers.items())


def _absent(scorers: Sequence[Scorer], versions: Mapping[str, str]) -> _Results:
    """Return the results of scorers that have no weights: None for each score, and the reason."""
    reasons = {kind: v for kind, v in versions.items() if v.startswith(ABSENT)}
    names = [f"{s.kind}.{name}" for s in scorers if s.kind in reasons for name in s.SCORES]
    return _Results(dict.fromkeys(names), reasons)


_DECISION_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("status", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)
