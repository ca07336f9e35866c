"""Rows of clips as the ledger holds them after scoring, without files behind them."""

from dataclasses import replace
from typing import Any

from magicdistill.data_pipeline.rows import STORED, ClipRow, Video


def scored_clip(name: str = "a", **changes: object) -> ClipRow:
    """Return a clip of 48 frames of 96 x 64 at 24 fps in good order, with some fields changed.

    Fields that a row keeps of its video (`STORED`) are changed there.
    """
    video = Video(name, name, name, name, "x", "x", "portrait")
    listed: dict[str, Any] = {key: changes.pop(key) for key in STORED if key in changes}
    fields: dict[str, object] = {
        "clip_id": name,
        "video": replace(video, **listed),
        "measures": "x",
        "stop": 48,
        "content_hash": name,
        "decoder": "pyav",
        "width": 96,
        "height": 64,
        "fps": 24.0,
        "num_frames_header": 48,
        "num_frames_decoded": 48,
        "motion_px": 2.0,
    }
    return ClipRow(**(fields | changes))  # type: ignore[arg-type]
