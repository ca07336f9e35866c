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
from magicdistill.data_pipeline.io.object_stores import Folder, file_state, is_remote
from magicdistill.data_pipeline.rows import Video, digest, videos_from_table
from magicdistill.data_pipeline.sources.base import Folders, SourceConfig
from magicdistill.data_pipeline.sources.columns import digests

logger = logging.getLogger(__name__)


def iter_videos(sources: Sequence[SourceConfig], clips_directory: Path) -> Iterator[Video]:
    """Yield the videos of all sources one by one, each once; raises as `SourceLister.tables`."""
    for table in iter_tables(sources, clips_directory):
        yield from videos_from_table(table)


def iter_tables(sources: Sequence[SourceConfig], clips_directory: Path) -> Iterator[pa.Table]:
    """Yield the tables of all parts of the sources; raises as `SourceLister.tables`."""
    lister, seen = SourceLister(sources, clips_directory), Seen()
    for number in range(lister.num_parts):
        yield from lister.tables(number, seen)


class SourceLister:
    """Lists the videos of all sources in parts, and tells of each part whether it would list
    what it has listed in an earlier run."""

    def __init__(self, sources: Sequence[SourceConfig], clips_directory: Path) -> None:
        """Open nothing yet.

        Args:
            sources: what to list.
            clips_directory: where rendered sources put their files.
        """
        self._sources, self._clips = sources, clips_directory
        self._folders: Folders = {}
        self._fingerprints: dict[Folder, str] = {}
        self._parts = [part for source in sources for part in source.parts(self._folders)]
        self._keys: list[str | None] = []
        self.num_parts = len(self._parts)

    @property
    def keys(self) -> Sequence[str | None]:
        """Of each part a text that changes with the recipe, code and files that it reads, and not
        with what is in the folders; null where a source does not say what it reads."""
        if not self._keys:
            self._keys = [self._key(part) for part in self._parts]
        return self._keys

    @property
    def key(self) -> str | None:
        """A text that changes where anything else may be listed.

        Null where that is unknown: a source does not say what it reads, or wants its store to be
        asked in every run. Raises FileNotFoundError if a folder does not exist.
        """
        found: list[object] = []
        for part, key in zip(self._parts, self.keys, strict=True):
            inputs = part.inputs()
            if inputs is None or key is None:
                return None
            if not part.listing_max_age_h and any(map(is_remote, inputs.folders)):
                return None
            folders = (part.folder(location, self._clips) for location in inputs.folders)
            found += [key, *map(self._fingerprint, folders)]
        return digest(*found)

    def tables(self, number: int, seen: "Seen") -> Iterator[pa.Table]:
        """Yield the videos of a part that were not seen yet, as tables of `VIDEO_SCHEMA`, without
        opening any.

        Manifests are read as streams, and of a row that was yielded eight bytes are kept. What a
        manifest names and nobody can use is listed too, with its `fault`.

        Raises:
            FileNotFoundError: if a folder or manifest does not exist or a package's videos are not
                installed.
            ValueError: if a manifest has another format.
        """
        part = self._parts[number]
        found: Counter[str] = Counter()
        for table in part.tables(self._clips):
            new = seen.add(table["video_id"].combine_chunks())
            if not new.all():
                found["listed before"] += len(new) - int(new.sum())
                table = table.filter(pa.array(new))
            for fault in pc.value_counts(table["fault"]).to_pylist():
                found[fault["values"].partition(":")[0] or "to read"] += fault["counts"]
            if table.num_rows:
                yield table
        logger.info("source %s: %s", part.kind, dict(found))

    def take_asked(self) -> pa.Table:
        """Return what the parts have asked of folders since the last call, a table of ASKED."""
        rows: list[tuple[str, str | None, str | None]] = []
        for (location, _), folder in self._folders.items():
            asked = folder.take_asked()
            if asked is None:
                rows.append((location, None, self._fingerprint(folder)))
                continue
            rows += ((location, *pair) for pair in asked.items() if pair[0] is not None)
        return pa.table([*zip(*rows, strict=True)] or [(), (), ()], ASKED)

    def holds(self, asked: pa.Table) -> bool:
        """Tell whether the folders, which `key` has opened, answer the same as when a table of
        ASKED was taken."""
        opened = {location: folder for (location, _), folder in self._folders.items()}
        for location in asked["location"].unique().to_pylist():
            folder = opened[location]
            own = asked.filter(pc.equal(asked["location"], location)).combine_chunks()
            names, states = (own[column].combine_chunks() for column in ("name", "state"))
            if names.null_count:
                if self._fingerprint(folder) not in states.filter(names.is_null()).to_pylist():
                    return False
            elif not folder.states(names).equals(states):
                return False
            folder.take_asked()
        return True

    def _fingerprint(self, folder: Folder) -> str:
        if folder not in self._fingerprints:
            self._fingerprints[folder] = folder.fingerprint()
        return self._fingerprints[folder]

    @staticmethod
    def _key(part: SourceConfig) -> str | None:
        if (inputs := part.inputs()) is None:
            return None
        code = Path(getfile(type(part))).read_bytes()
        files = map(file_state, inputs.files)
        return digest(code_version(), part.model_dump_json(), code, *files)


ASKED = pa.schema({"location": pa.string(), "name": pa.string(), "state": pa.string()})
"""The state of a file in a folder, null if there was none; with null as the name, a text that
changes with anything in the folder."""


def place_of(sources: Sequence[SourceConfig]) -> str:
    """Return a text that stays while manifests are added to sources, and tells them from others."""
    return digest(*(source.model_dump_json(exclude={"manifests"}) for source in sources))


@cache
def code_version() -> str:
    """Return a digest of the code that makes tables: what other code has made is not used."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return digest(*(file.read_text() for file in files))


_DIGITS = np.full(256, 0xFF, np.uint8)
"""The value of each hexadecimal digit by its character code, 255 of other characters."""
_DIGITS[[*b"0123456789abcdef"]] = range(16)


class Seen:
    """The ids that were listed, as 64 of the 80 bits of each: 36 million rows take 0.3 GB.

    Two of so many rows agree in these bits with a chance of 1 in 28,000.
    """

    def __init__(self) -> None:
        self._known: list[npt.NDArray[np.uint64]] = []
        self._runs: list[npt.NDArray[np.uint64]] = []
        """Sorted numbers in arrays of which each has more than twice as many as the next."""
        self._taken: list[npt.NDArray[np.uint64]] = []

    def know(self, numbers: npt.NDArray[np.uint64]) -> None:
        """Count numbers that `take` has returned as seen; they stay where they are."""
        self._known.append(numbers)

    def take(self) -> npt.NDArray[np.uint64]:
        """Return the numbers that were added since the last call, sorted."""
        found = np.sort(np.concatenate([np.zeros(0, np.uint64), *self._taken]))
        self._taken.clear()
        return found

    def add(self, ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Add ids; return which of them are there for the first time."""
        numbers = _numbers(ids)
        unique, first = np.unique(numbers, return_index=True)
        known = np.zeros(len(unique), bool)
        for run in filter(len, (*self._known, *self._runs)):
            places = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            known |= run[places] == unique
        new = np.zeros(len(numbers), bool)
        new[first[~known]] = True
        if (~known).any():
            self._runs.append(unique[~known])
            self._taken.append(unique[~known])
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
