"""Films that were taken down; tombstones in the ledger keep them and their near copies away."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from magicdistill.data_pipeline.io.storage import AnyPath, list_files
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.ledger.duplicates import CLIPS, COMPARED
from magicdistill.data_pipeline.rows import ClipRow, Video, digest

REASON = "takedown"
"""Begins the reason of every clip that was taken down."""


@dataclass(frozen=True)
class Takedowns:
    """The films that were taken down, by their names and by the content of their files."""

    sources: dict[str, str]
    """Day of the takedown (YYYY-MM-DD) by source id."""
    contents: dict[str, str]
    """Source id of the film by the content hash of each of its files."""
    looks: list[dict[str, Any]] = field(default_factory=list)
    """Hashes and embeddings of the films' clips, each with its source and its scorer's version."""

    @classmethod
    def load(cls, ledger: AnyPath) -> "Takedowns":
        """Read the tombstones of a ledger's folder."""
        sources: dict[str, str] = {}
        contents: dict[str, str] = {}
        looks: list[dict[str, Any]] = []
        for path in list_files(_folder(ledger), "*.json"):
            stone = json.loads(path.read_text())
            sources[stone["source_id"]] = stone["day"]
            contents |= dict.fromkeys(stone["content_hashes"], stone["source_id"])
            looks += ({"source_id": stone["source_id"]} | look for look in _looks(stone))
        return cls(sources, contents, looks)

    def mark(self, videos: Iterable[Video]) -> Iterator[Video]:
        """Yield videos; of those that were taken down only their names and the reason are left."""
        for video in videos:
            day = self.sources.get(video.source_id)
            yield video if day is None else _without_content(video, f"{REASON}: on {day}")

    def of_content(self, content_hash: str) -> str:
        """Return the reason why a file of this content must not be used; empty if it may."""
        source_id = self.contents.get(content_hash)
        return f"{REASON}: same content as {source_id}" if source_id else ""

    def clips(self, versions: Mapping[str, str]) -> pa.Table:
        """Return the films' clips for `find_copies`, a row for each hash and each embedding.

        Args:
            versions: versions of the scorers whose blobs are compared, by kind. Embeddings of
                other versions are of another model and left out. Hashes follow a formula, so that
                those of any version are compared.
        """
        rows = [
            {"clip_id": f"{number}", "source_id": look["source_id"], look["kind"]: look["blob"]}
            for number, look in enumerate(self.looks)
            if look["kind"] == "phash" or look["version"] == versions.get(look["kind"])
        ]
        return pa.Table.from_pylist(rows, schema=CLIPS)


def add_tombstone(
    ledger: AnyPath,
    source_id: str,
    content_hashes: Iterable[str],
    clips: Iterable[ClipRow] = (),
) -> set[str]:
    """Record that a film was taken down, and what its clips look like.

    Returns:
        The hashes of all the film's files that are known.
    """
    path = _folder(ledger) / f"{digest(source_id)}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    contents = {*before.get("content_hashes", ()), *content_hashes}
    looks = {
        (kind, clip.scorers[kind], b64encode(clip.blobs[kind]).decode())
        for clip in clips
        for kind in COMPARED
        if kind in clip.blobs
    }
    looks |= {(look["kind"], look["version"], look["blob"]) for look in before.get("looks", ())}
    stone = {
        "source_id": source_id,
        "day": before.get("day", f"{datetime.now(UTC):%Y-%m-%d}"),
        "content_hashes": sorted(contents),
        "looks": [
            {"kind": kind, "version": version, "blob": blob}
            for kind, version, blob in sorted(looks)
        ],
    }
    write_text(path, json.dumps(stone, indent=1))
    return contents


def _looks(stone: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield hashes and embeddings of a tombstone; one of an older ledger has none."""
    for look in stone.get("looks", ()):
        yield look | {"blob": b64decode(look["blob"])}


def _folder(ledger: AnyPath) -> AnyPath:
    return ledger / "takedowns"


def _without_content(video: Video, fault: str) -> Video:
    return replace(video, fault=fault, fingerprint=f"fault {fault}", caption="", imported_scores={})
