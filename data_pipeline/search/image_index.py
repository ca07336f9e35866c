"""Search a folder of images by text: their embeddings, in Parquet files, compared by cosine.

The search is exact: a process that makes a first frame searches once, and building an approximate
index takes longer than one comparison with all embeddings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from magicdistill.data_pipeline.io.storage import list_files, read_files, remove, write_parquet
from magicdistill.data_pipeline.media.images import ImageError, read_image
from magicdistill.data_pipeline.progress import Progress
from magicdistill.data_pipeline.rows import digest

FOLDER = ".magicdistill"
"""Folder inside the corpus that holds one folder of embeddings for each model."""
SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
NUM_EMBEDDED = 32
"""Number of images that are decoded and embedded at once."""
NUM_WRITTEN = 1024
"""Rows in one new file: an interrupted run loses at most these."""
MAX_FILES = 16
"""With more files than these, all are merged into one."""
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # from the corpus's folder
        ("num_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("failure", pa.string()),  # null where there is an embedding
        ("embedding", pa.list_(pa.float32())),  # of length 1
    ]
)
Embed = Callable[[Sequence[np.ndarray]], Float[np.ndarray, "b d"]]
"""A function that returns embeddings of length 1 for images, uint8 RGB (y x 3)."""
State = tuple[str, int, int]
"""Path, size in bytes and modification time of an image; it is embedded again if one changes."""


@dataclass(frozen=True)
class Match:
    """An image that was found, and its cosine similarity with the text."""

    path: Path
    cosine: float


class ImageIndex:
    """The images of a folder and its subfolders, embedded by one model."""

    def __init__(self, corpus: Path, model: str) -> None:
        """Take the folder and the name of the model; the index is empty until `update`."""
        self.corpus, self.folder = corpus, corpus / FOLDER / model[:16]
        self._table = SCHEMA.empty_table()

    def update(self, embed: Embed, progress: Progress = lambda stage, done, total: None) -> int:
        """Embed new and changed images, forget removed ones; return how many were embedded.

        Raises FileNotFoundError if the corpus is no folder.
        """
        states = list(self._states())
        stored = _rows(self._read())
        new = [state for state in states if state not in stored]
        for start in range(0, len(new), NUM_WRITTEN):
            group = new[start : start + NUM_WRITTEN]
            tables = []
            for first in range(0, len(group), NUM_EMBEDDED):
                tables.append(self._embed(group[first : first + NUM_EMBEDDED], embed))
                progress("embedding", start + first + len(tables[-1]), len(new))
            write_parquet(pa.concat_tables(tables), self.folder / f"{digest(*group)}.parquet")
        table = self._read()
        rows = _rows(table)
        self._table = table.take(pa.array([rows[state] for state in states], pa.int64()))
        self._compact()
        return len(new)

    def search(self, text: Float[np.ndarray, " d"], count: int) -> list[Match]:
        """Return the `count` images nearest to a text's unit embedding, the nearest first."""
        import faiss  # half a second to import, so only where it is needed

        found = self._table.filter(self._table["failure"].is_null())
        if not len(found):
            return []
        paths = found["path"].to_pylist()
        vectors = found["embedding"].combine_chunks().flatten().to_numpy()
        index = faiss.IndexFlatIP(len(text))
        index.add(vectors.reshape(len(found), len(text)))
        cosines, positions = index.search(text[None].astype(np.float32), min(count, len(found)))
        return [
            Match(self.corpus / paths[position], float(cosine))
            for position, cosine in zip(positions[0], cosines[0], strict=True)
        ]

    def __len__(self) -> int:
        return len(self._table) - len(self.failures)

    @property
    def failures(self) -> list[str]:
        """Return a line about each image that cannot be read."""
        return self._table["failure"].drop_null().to_pylist()

    def _states(self) -> Iterator[State]:
        if not self.corpus.is_dir():
            raise FileNotFoundError(f"{self.corpus} is no folder")
        for path in sorted(self.corpus.rglob("*")):
            name = path.relative_to(self.corpus)
            if path.suffix.lower() in SUFFIXES and name.parts[0] != FOLDER and path.is_file():
                facts = path.stat()
                yield name.as_posix(), facts.st_size, facts.st_mtime_ns

    def _read(self) -> pa.Table:
        files = list_files(self.folder, "*.parquet")
        return read_files(files, SCHEMA) if files else SCHEMA.empty_table()

    def _embed(self, states: Sequence[State], embed: Embed) -> pa.Table:
        """Return the rows of some images: each with an embedding or with a failure."""
        pictures, failures = {}, {}
        for state in states:
            try:
                pictures[state] = read_image(self.corpus / state[0])
            except ImageError as error:
                failures[state] = str(error)
        embedded = embed(list(pictures.values())) if pictures else ()
        vectors = dict(zip(pictures, embedded, strict=True))
        rows = [(*state, failures.get(state), vectors.get(state)) for state in states]
        columns = dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True))
        return pa.table({name: list(column) for name, column in columns.items()}, schema=SCHEMA)

    def _compact(self) -> None:
        files = list_files(self.folder, "*.parquet")
        if len(files) <= MAX_FILES:
            return
        whole = self.folder / f"{digest(*files)}.parquet"
        write_parquet(self._table, whole)
        for file in files:
            remove(file)


def _rows(table: pa.Table) -> dict[State, int]:
    """Return the row number of each image in a table, by the image's state."""
    states = zip(*(table[name].to_pylist() for name in SCHEMA.names[:3]), strict=True)
    return {state: row for row, state in enumerate(states)}
