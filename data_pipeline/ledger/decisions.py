"""Reject copies among the clips within a policy's limits, and those beyond the cap of a source."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.config import Policy
from magicdistill.data_pipeline.io.query import Database, name
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.columns import SLICE
from magicdistill.data_pipeline.ledger.duplicates import COMPARED, find_copies

_RANKED_BY = {"blur": "scores.blur.effect", "colour": "scores.colour.mean"}
"""Scores by which the better of two copies is known."""


def candidates(
    clips: str, columns: Collection[str], listed: str, looks: str, kinds: Collection[str]
) -> str:
    """Return the query of what copies are found by, for `find_copies`.

    Args:
        clips: the accepted clips, as `policy.judged` gives them.
        columns: their columns.
        listed: the videos that they are of, by `ordinal`.
        looks: the same clips with their blobs, `blobs.…`.
        kinds: kinds of the scorers whose blobs there are.
    """
    ranked = ", ".join(
        f"{f'c.{name(column)}' if column in columns else 'NULL::DOUBLE'} AS {alias}"
        for alias, column in _RANKED_BY.items()
    )
    taken = {kind: f"l.{name(f'blobs.{kind}')}" for kind in kinds}
    blobs = ", ".join(f"{taken.get(kind, 'NULL::BLOB')} AS {kind}" for kind in COMPARED)
    joined = f"LEFT JOIN {looks} AS l ON l.clip_id = c.clip_id" if kinds else ""
    return (
        "SELECT c.clip_id, c.source_id, v.uri, c.content_hash, c.start, c.stop, c.crop, "
        f"c.time_scale, c.width, c.height, {ranked}, {blobs}, c.{SLICE}, c.ordinal "
        f"FROM {clips} AS c JOIN {listed} AS v USING (ordinal) {joined}"
    )


def write_refusals(
    db: Database,
    accepted: str,
    held_out: Sequence[str],
    taken_down: pa.Table,
    policy: Policy,
    target: Path,
    kept: AnyPath | None = None,
) -> None:
    """Write the reasons against copies, and against clips beyond the cap of their source.

    Which of a source's clips are kept is chosen by a hash of their ids: the choice is spread over
    the source, is always the same and depends on no other source.

    Args:
        db: what asks.
        accepted: the table of the query `candidates`.
        held_out: queries of the same columns, of clips of which no copy may be accepted.
        taken_down: clips of films that were taken down, as `Takedowns.clips` returns them.
        policy: the limits.
        target: a file of (clip_id, slice, refusal).
        kept: folder that remembers what was compared; null remembers nothing.
    """
    nobody = f"SELECT * FROM {accepted} LIMIT 0"
    db.run(f"CREATE OR REPLACE VIEW candidates AS FROM {accepted}")
    db.run(f"CREATE OR REPLACE VIEW held_out AS {' UNION ALL '.join(held_out) or nobody}")
    limits = policy.max_hash_bits, policy.min_cosine
    with db.named(taken_down=taken_down):
        copies = find_copies(db.connection, "candidates", "held_out", "taken_down", *limits, kept)
    copied = (
        "SELECT clip_id, CASE WHEN is_taken_down THEN concat('takedown: near copy of ', "
        "of_source_id) ELSE concat('duplicate: of ', of_source_id, CASE WHEN is_held_out THEN "
        "' in the held-out clips' ELSE '' END, ' by ', how) END AS refusal FROM copies"
    )
    most = policy.max_clips_per_source
    surplus = (
        f"SELECT clip_id, concat('cap: ', source_id, ' has more than {most} clips') AS refusal "
        "FROM (FROM candidates ANTI JOIN copies USING (clip_id)) QUALIFY row_number() OVER "
        f"(PARTITION BY source_id ORDER BY sha256(clip_id)) > {most}"
    )
    with db.named(copies=copies):
        db.write(
            f"SELECT clip_id, {SLICE}, refusal FROM ({copied} UNION ALL {surplus}) "
            f"JOIN candidates USING (clip_id) ORDER BY {SLICE}",
            target,
        )


def decided(clips: str, refused: str) -> str:
    """Return the query of judged clips with the refusals among their reasons."""
    return (
        "SELECT c.* REPLACE (CASE WHEN refusal IS NULL THEN status ELSE 'rejected' END AS status, "
        "CASE WHEN refusal IS NULL THEN reasons ELSE [refusal] END AS reasons) "
        f"FROM {clips} AS c LEFT JOIN (SELECT clip_id, refusal FROM {refused}) AS r USING (clip_id)"
    )
