"""Captions in the ledger's queries: which one a clip has, which clips lack one, and the cost."""

from collections.abc import Collection

from magicdistill.data_pipeline.captioning.base import COSTS
from magicdistill.data_pipeline.captioning.captions import CAPTION
from magicdistill.data_pipeline.captioning.costs import CaptionCost
from magicdistill.data_pipeline.io.query import name, text
from magicdistill.data_pipeline.ledger.columns import imported_column
from magicdistill.data_pipeline.ledger.ledger import Ledger, LedgerRows

WRITTEN = "written"
"""Column of the caption that was written for a clip; null where the listing's is used."""
REASON = "not captioned yet"
UNWRITTEN = f"status = 'rejected' AND reasons[1] = {text(REASON)}"
"""Condition of the judged clips that `captions_demanded` rejects."""
_SCORER, _BLOB = f"scorers.{CAPTION}", f"blobs.{CAPTION}"


def _is_given(columns: Collection[str]) -> str:
    """Return the condition of clips whose caption in the listing is used: that one is measured."""
    given = imported_column(f"{CAPTION}.words")
    return f"{name(given)} IS NOT NULL" if given in columns else "false"


def captions_chosen(clips: str, columns: Collection[str]) -> str:
    """Return the query of scored clips with the column WRITTEN instead of the stored text.

    Where the listing's caption is used, what was written once, and its measures, do not count.
    """
    given = _is_given(columns)
    own = [c for c in columns if c == _SCORER or c.startswith(f"scores.{CAPTION}.")]
    masked = ", ".join(f"CASE WHEN NOT {given} THEN {name(c)} END AS {name(c)}" for c in own)
    return (
        f"SELECT * EXCLUDE ({name(_BLOB)}) REPLACE ({masked}), "
        f"CASE WHEN NOT {given} THEN decode({name(_BLOB)}) END AS {WRITTEN} FROM {clips}"
    )


def captions_demanded(clips: str, columns: Collection[str], version: str) -> str:
    """Return the query of judged clips in which those without a caption are rejected.

    Args:
        clips: a table or a query in parentheses, with `status` and `reasons`.
        columns: the names of its columns.
        version: version of the captions that count, beside those of the listing.
    """
    lacks = (
        f"status = 'accepted' AND {name(_SCORER)} IS DISTINCT FROM {text(version)} "
        f"AND NOT {_is_given(columns)}"
    )
    return (
        f"SELECT * REPLACE (CASE WHEN {lacks} THEN 'rejected' ELSE status END AS status, "
        f"CASE WHEN {lacks} THEN [{text(REASON)}] ELSE reasons END AS reasons) FROM {clips}"
    )


def cost_of_all(ledger: Ledger, version: str) -> CaptionCost:
    """Return what all recorded captions of a version cost, those of killed runs included."""

    def ask(rows: LedgerRows) -> CaptionCost:
        columns = [f"scores.{CAPTION}.{cost}" for cost in COSTS]
        if not {_SCORER, *columns} <= {*rows.columns}:
            return CaptionCost()
        once = ", ".join(f"max({name(column)}) AS {name(column)}" for column in columns)
        sums = ", ".join(f"coalesce(sum({name(column)}), 0)" for column in columns)
        paid = f"{name(_SCORER)} = {text(version)} AND {name(columns[0])} IS NOT NULL"
        clips = f"SELECT {once} FROM ({rows.sql}) WHERE {paid} GROUP BY clip_id"
        ((count, *found),) = ledger.database.rows(f"SELECT count(*), {sums} FROM ({clips})")
        tokens_in, tokens_out, requests, seconds = found
        return CaptionCost(count, int(tokens_in), int(tokens_out), int(requests), seconds)

    return ledger.read(ask)
