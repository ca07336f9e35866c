"""CelebV-HQ's one JSON file, with all clips."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from magicdistill.data_pipeline.io.object_stores import read_json
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    UNIT_FRAME,
    Entry,
    Fault,
    checked_crop,
    checked_span,
    in_tables,
)
from magicdistill.data_pipeline.sources.stores import Store, Terms
from magicdistill.models.paths import Location


class CelebvHq(SourceConfig):
    """CelebV-HQ (Zhu et al. 2022): one JSON file with spans and face boxes."""

    kind: Literal["celebv-hq"] = "celebv-hq"
    manifest: Location
    """The JSON file of the data set."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "CelebV-HQ (non-commercial research)"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the videos of the store that the manifest names."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=self.store.holds == "clips")
        return self.store.tables(in_tables(entries(self)), folder, terms)


def entries(source: CelebvHq) -> Iterator[Entry]:
    """Yield one entry per clip; a clip's name is `<id of the video>_<number>`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not JSON or has no `clips`.
    """
    content = read_json(source.manifest)
    clips = content.get("clips") if isinstance(content, dict) else None
    if not isinstance(clips, dict):
        raise ValueError(f"{source.manifest} has no object `clips`")
    for name, facts in clips.items():
        yield _entry(name, facts)


def _entry(name: str, facts: Any) -> Entry:
    video = name.rpartition("_")[0] or name
    try:
        video = str(facts["ytb_id"])
        duration, box = facts["duration"], facts.get("bbox")
        span = float(duration["start_sec"]), float(duration["end_sec"])
        t0_s, t1_s = checked_span(*span)
        if box is None:
            raise Fault("missing crop")
        sides = tuple(float(box[side]) for side in ("left", "top", "right", "bottom"))
        crop = checked_crop(sides)
    except Fault as fault:
        return Entry(name, video, span_fault=str(fault))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Entry(name, video, span_fault=f"bad row: {type(error).__name__}: {error}")
    return Entry(name, video, t0_s, t1_s, crop=crop, crop_frame=UNIT_FRAME)
