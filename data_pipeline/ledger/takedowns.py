"""Films that were taken down; tombstones in the ledger keep them from being used again."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from magicdistill.data_pipeline.io.storage import AnyPath, list_files
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.rows import Video, digest

REASON = "takedown"
"""Begins the reason of every clip that was taken down."""


@dataclass(frozen=True)
class Takedowns:
    """The films that were taken down, by their names and by the content of their files."""

    sources: dict[str, str]
    """Day of the takedown (YYYY-MM-DD) by source id."""
    contents: dict[str, str]
    """Source id of the film by the content hash of each of its files."""

    @classmethod
    def load(cls, ledger: AnyPath) -> "Takedowns":
        """Read the tombstones of a ledger's folder."""
        sources: dict[str, str] = {}
        contents: dict[str, str] = {}
        for path in list_files(_folder(ledger), "*.json"):
            stone = json.loads(path.read_text())
            sources[stone["source_id"]] = stone["day"]
            contents |= dict.fromkeys(stone["content_hashes"], stone["source_id"])
        return cls(sources, contents)

    def mark(self, videos: Iterable[Video]) -> Iterator[Video]:
        """Yield videos; of those that were taken down only their names and the reason are left."""
        for video in videos:
            day = self.sources.get(video.source_id)
            yield video if day is None else _without_content(video, f"{REASON}: on {day}")

    def of_content(self, content_hash: str) -> str:
        """Return the reason why a file of this content must not be used; empty if it may."""
        source_id = self.contents.get(content_hash)
        return f"{REASON}: same content as {source_id}" if source_id else ""


def add_tombstone(ledger: AnyPath, source_id: str, content_hashes: Iterable[str]) -> set[str]:
    """Record that a film was taken down; return the hashes of all its files that are known."""
    path = _folder(ledger) / f"{digest(source_id)}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    contents = {*before.get("content_hashes", ()), *content_hashes}
    stone = {
        "source_id": source_id,
        "day": before.get("day", f"{datetime.now(UTC):%Y-%m-%d}"),
        "content_hashes": sorted(contents),
    }
    write_text(path, json.dumps(stone, indent=1))
    return contents


def _folder(ledger: AnyPath) -> AnyPath:
    return ledger / "takedowns"


def _without_content(video: Video, fault: str) -> Video:
    return replace(video, fault=fault, fingerprint=f"fault {fault}", caption="", imported_scores={})
