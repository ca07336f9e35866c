"""List the videos of all sources of a recipe."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.rows import Video, videos_to_table
from magicdistill.data_pipeline.sources.base import SourceConfig

logger = logging.getLogger(__name__)

TABLE_ROWS = 50_000
"""Largest number of rows of a table of the listing."""


def iter_videos(sources: Sequence[SourceConfig], clips_directory: Path) -> Iterator[Video]:
    """Yield the videos of all sources, each once, without opening any.

    Manifests are read as streams, so a million rows need little memory. What a manifest names and
    nobody can use is listed too, with its `fault`.

    Args:
        sources: what to list.
        clips_directory: where rendered sources put their files.

    Raises:
        FileNotFoundError: if a folder or manifest does not exist or a package's videos are not
            installed.
        ValueError: if a manifest has another format.
    """
    seen: set[str] = set()
    for source in sources:
        found: Counter[str] = Counter()
        for video in source.videos(clips_directory):
            twice = video.video_id in seen
            found["listed before" if twice else video.fault.partition(":")[0] or "to read"] += 1
            if not twice:
                seen.add(video.video_id)
                yield video
        logger.info("source %s: %s", source.kind, dict(found))


def iter_tables(sources: Sequence[SourceConfig], clips_directory: Path) -> Iterator[pa.Table]:
    """Yield what `iter_videos` does as tables of `VIDEO_SCHEMA`, of at most `TABLE_ROWS` rows."""
    videos = iter_videos(sources, clips_directory)
    while some := list(islice(videos, TABLE_ROWS)):
        yield videos_to_table(some)
