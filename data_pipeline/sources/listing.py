"""List the videos of all sources of a recipe."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import getfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.io.object_stores import file_state, is_remote
from magicdistill.data_pipeline.rows import Video, digest, videos_from_table
from magicdistill.data_pipeline.sources.base import SourceConfig
from magicdistill.data_pipeline.sources.columns import digests

logger = logging.getLogger(__name__)


def iter_videos(sources: Sequence[SourceConfig], clips_directory: Path) -> Iterator[Video]:
    """Yield the videos of `iter_tables` one by one."""
    for table in iter_tables(sources, clips_directory):
        yield from videos_from_table(table)


def iter_tables(sources: Sequence[SourceConfig], clips_directory: Path) -> Iterator[pa.Table]:
    """Yield tables of `VIDEO_SCHEMA` of the videos of all sources, each once, without opening any.

    Manifests are read as streams, and of a row that was yielded eight bytes are kept. What a
    manifest names and nobody can use is listed too, with its `fault`.

    Args:
        sources: what to list.
        clips_directory: where rendered sources put their files.

    Raises:
        FileNotFoundError: if a folder or manifest does not exist or a package's videos are not
            installed.
        ValueError: if a manifest has another format.
    """
    seen = _Seen()
    for source in sources:
        found: Counter[str] = Counter()
        for table in source.tables(clips_directory):
            new = seen.add(table["video_id"].combine_chunks())
            if not new.all():
                found["listed before"] += len(new) - int(new.sum())
                table = table.filter(pa.array(new))
            for fault in pc.value_counts(table["fault"]).to_pylist():
                found[fault["values"].partition(":")[0] or "to read"] += fault["counts"]
            if table.num_rows:
                yield table
        logger.info("source %s: %s", source.kind, dict(found))


def listing_key(sources: Sequence[SourceConfig], clips_directory: Path) -> str | None:
    """Return a text that changes where `iter_tables` may list anything else.

    Null where that is unknown: a source does not say what it reads, or wants its store to be asked
    in every run.

    Raises:
        FileNotFoundError: if a folder does not exist.
    """
    parts: list[object] = [code_version()]
    for source in sources:
        inputs = source.inputs()
        if inputs is None or (not source.listing_max_age_h and any(map(is_remote, inputs.folders))):
            return None
        folders = (source.folder(folder, clips_directory) for folder in inputs.folders)
        parts += [source.model_dump_json(), Path(getfile(type(source))).read_bytes()]
        parts += map(file_state, inputs.files)
        parts += (folder.fingerprint() for folder in folders)
    return digest(*parts)


@cache
def code_version() -> str:
    """Return a digest of the code that makes tables: what other code has made is not used."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return digest(*(file.read_text() for file in files))


_DIGITS = np.full(256, 0xFF, np.uint8)
"""The value of each hexadecimal digit by its character code, 255 of other characters."""
_DIGITS[[*b"0123456789abcdef"]] = range(16)


class _Seen:
    """The ids that were listed, as 64 of the 80 bits of each: 36 million rows take 0.3 GB.

    Two of so many rows agree in these bits with a chance of 1 in 28,000.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []
        """Sorted numbers in arrays of which each has more than twice as many as the next."""

    def add(self, ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Add ids; return which of them are there for the first time."""
        numbers = _numbers(ids)
        unique, first = np.unique(numbers, return_index=True)
        known = np.zeros(len(unique), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            known |= run[places] == unique
        new = np.zeros(len(numbers), bool)
        new[first[~known]] = True
        if (~known).any():
            self._runs.append(unique[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            run = np.concatenate([self._runs.pop(), self._runs.pop()])
            run.sort()
            self._runs.append(run)
        return new


def _numbers(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Return the first 16 of the hexadecimal digits of each id, as numbers."""
    if not len(ids):
        return np.zeros(0, np.uint64)
    _, offsets, content = ids.buffers()
    bounds = np.frombuffer(offsets, np.int32)[ids.offset :][: len(ids) + 1]
    digits = _DIGITS[np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]]
    if (np.diff(bounds) != 20).any() or digits.max() == 0xFF:  # a plugin's ids, which are any texts
        return _numbers(digests(ids))
    pairs = digits.reshape(-1, 10, 2)[:, :8]
    return (pairs[..., 0] << 4 | pairs[..., 1]).view(np.uint64)[:, 0]
