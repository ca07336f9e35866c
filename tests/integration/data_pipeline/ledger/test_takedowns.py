"""What a takedown keeps away: the film by its names and files, and what looks like it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from magicdistill.data_pipeline.config import Bucket, Policy
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns, add_tombstone
from magicdistill.data_pipeline.maintenance.removal import take_down
from magicdistill.data_pipeline.media.video import decode
from magicdistill.data_pipeline.rows import ClipRow, digest
from magicdistill.data_pipeline.scorers.base import Frame
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.sources.package_clips import find_clips
from tests.curation_tables import decide
from tests.scored_clips import scored_clip

VERSIONS = {"phash": PHash().version}
POLICY = Policy(min_short_side=64, min_long_side=64)


def real_clip(file: str, **changes: object) -> ClipRow:
    """Return the row of a real video, with its hashes."""
    (path,) = (path for path, _ in find_clips() if path.name == file)
    frames, scorer = list(decode(path)), PHash()
    looks = [scorer.look(Frame(frames[at]), None) for at in scorer.indices(0, len(frames), 24.0)]
    blobs = {"phash": scorer.blob(looks)}
    return scored_clip(file, blobs=blobs, scorers=VERSIONS, stop=len(frames), **changes)


def statuses(
    clips: list[ClipRow], takedowns: Takedowns, versions: Mapping[str, str] = VERSIONS
) -> dict[str, tuple[str, ...]]:
    taken_down = takedowns.clips(versions)
    found = decide(clips, POLICY, Bucket(), versions=versions, taken_down=taken_down)
    return {decision.clip.clip_id: decision.reasons for decision in found}


def test_a_distorted_copy_stays_away_after_its_film_was_taken_down(tmp_path: Path):
    ledger = tmp_path / "ledger"
    film = real_clip("carphone_pristine.mp4", source_id="hdtf/film")
    copy = (
        real_clip("carphone_distorted.mp4", blurred=1)
        if False
        else real_clip("carphone_distorted.mp4", scores={"blur.effect": 0.5})
    )
    other = real_clip("bikes.mp4")
    Ledger(ledger).append([film, copy, other])
    assert statuses([film, copy, other], Takedowns.load(ledger)) == {
        "carphone_pristine.mp4": (),
        "carphone_distorted.mp4": ("duplicate: of hdtf/film by pHash",),
        "bikes.mp4": (),
    }
    for _ in range(2):  # the second time no row of the film is left to take hashes from
        take_down(tmp_path, "hdtf/film")
        assert {row.clip_id for row in Ledger(ledger).find([film.clip_id, copy.clip_id])} == {
            copy.clip_id
        }
        assert statuses([copy, other], Takedowns.load(ledger)) == {
            "carphone_distorted.mp4": ("takedown: near copy of hdtf/film",),
            "bikes.mp4": (),
        }


def test_a_tombstone_keeps_what_every_row_of_the_film_has(tmp_path: Path):
    ledger = tmp_path / "ledger"
    vector, of_old = (np.array(pair, np.float16).tobytes() for pair in ([1, 0], [0, 1]))
    hashes = bytes(64)
    film = scored_clip("a", source_id="film", content_hash="h")
    seen = {"phash": "1"}, {"phash": hashes}
    parts = [
        replace(film, scorers=seen[0], blobs=seen[1]),
        replace(film, scorers={"embedding": "new"}, blobs={"embedding": vector}),
        replace(film, scorers={"embedding": "old"}, blobs={"embedding": of_old}),
        scored_clip(
            "b", source_id="alias", content_hash="h", scorers=seen[0], blobs={"phash": b"x" * 64}
        ),
    ]
    for part in parts:
        Ledger(ledger).append([part])
    take_down(tmp_path, "film")
    found = Takedowns.load(ledger).clips({"phash": "2", "embedding": "new"}).to_pylist()
    assert {row["source_id"] for row in found} == {"film"}
    assert {row["phash"] or row["embedding"] for row in found} == {hashes, b"x" * 64, vector}
    assert len({row["clip_id"] for row in found}) == 3


def test_a_tombstone_of_an_older_version_names_only_the_film_and_its_files(tmp_path: Path):
    stone = {"source_id": "film", "day": "2026-01-01", "content_hashes": ["h"]}
    path = tmp_path / "takedowns" / f"{digest('film')}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(stone))
    takedowns = Takedowns.load(tmp_path)
    assert takedowns.of_content("h") == "takedown: same content as film"
    assert not len(takedowns.clips(VERSIONS))
    clip = scored_clip("a", scorers=VERSIONS, blobs={"phash": bytes(64)})
    assert add_tombstone(tmp_path, "film", ["i"], [clip]) == {"h", "i"}
    again = Takedowns.load(tmp_path)
    assert again.sources == takedowns.sources
    assert statuses([replace(clip, clip_id="b", content_hash="c")], again) == {
        "b": ("takedown: near copy of film",)
    }
