"""Near duplicates: time and memory as clips grow, how many copies are found, and later runs."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_shared import Row, be_part, run_part

from magicdistill.data_pipeline.ledger.duplicates import CLIPS, find_copies
from magicdistill.data_pipeline.rows import Array

COPIES_IN = 100
"""One clip of so many is a copy of an earlier one, at exactly the limit."""
NEW_IN = 100
"""One clip of so many comes after the first run."""
KINDS = ("hashes", "embeddings")
BITS, MAX_BITS, MIN_COSINE = 512, 6.0, 0.98
WIDTH = 512
"""Numbers in an embedding."""
WRITTEN = 100_000
"""Rows that are made at once."""


def near_duplicates(folder: Path, counts: Sequence[int], kinds: Sequence[str] = KINDS) -> list[Row]:
    """Find copies by hashes with mirror images, and by embeddings, and again with new clips."""
    rows: list[Row] = []
    for kind in kinds:
        for count in counts:
            place = folder / f"{kind}-{count}"
            place.mkdir()
            run_part(__file__, f"make {kind}", place, f"{count}")
            for title in ("all", "one in a hundred is new", "nothing is new"):
                part = run_part(__file__, title, place, f"{count}")
                rows.append({"name": f"copies by {kind}, {count:,} clips, {title}"} | part)
            shutil.rmtree(place)
    return rows


def make_hashes(folder: Path) -> Row:
    """Write clips with random hashes, of which some are copies of clips of the first block."""
    rng = np.random.default_rng(0)

    def blobs(originals: Array | None, count: int) -> Array:
        made = rng.integers(0, 256, (count, BITS // 4), dtype=np.uint8)
        if originals is not None:
            for copy, original in zip(made[::COPIES_IN], originals, strict=False):
                bits = np.unpackbits(original[: BITS // 8])
                bits[rng.permutation(BITS)[: round(MAX_BITS * BITS / 64)]] ^= 1
                copy[: BITS // 8] = np.packbits(bits)
        return made

    return write_clips(folder, "phash", blobs)


def make_embeddings(folder: Path) -> Row:
    """Write clips with embeddings around a mean, as those of images are."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(WIDTH, dtype=np.float32)

    def blobs(originals: Array | None, count: int) -> Array:
        made = mean + 0.8 * rng.standard_normal((count, WIDTH), dtype=np.float32)
        if originals is not None:
            copies = made[::COPIES_IN]
            old = originals.view(np.float16)[: len(copies)].astype(np.float32)
            unit = old / np.linalg.norm(old, axis=1, keepdims=True)
            across = copies - (copies * unit).sum(1, keepdims=True) * unit
            across /= np.linalg.norm(across, axis=1, keepdims=True)
            cosine = MIN_COSINE + 1e-4  # float16 rounds
            copies[:] = 30 * (cosine * unit + np.sqrt(1 - cosine**2) * across)
        return made.astype(np.float16).view(np.uint8)

    return write_clips(folder, "embedding", blobs)


def write_clips(folder: Path, kind: str, blobs: Callable[[Array | None, int], Array]) -> Row:
    """Write clips in blocks; the later ones have copies of the first ones."""
    count = int((folder / "part.json").read_text())
    step = min(WRITTEN, count // 2)
    first: Array | None = None
    writer = pq.ParquetWriter(folder / "clips.parquet", CLIPS)
    for start in range(0, count, step):
        number = min(step, count - start)
        made = blobs(first[start // COPIES_IN :] if first is not None else None, number)
        first = made if first is None else first
        names = [f"{n:020x}" for n in range(start, start + number)]
        columns = {name: pa.nulls(number, CLIPS.field(name).type) for name in CLIPS.names}
        columns |= dict.fromkeys(("clip_id", "source_id", "uri", "content_hash"), pa.array(names))
        columns |= {"start": pa.array([0] * number), "stop": pa.array([129] * number)}
        columns |= {"width": pa.array([96] * number), "height": pa.array([64] * number)}
        columns[kind] = pa.array([row.tobytes() for row in made], pa.binary())
        writer.write_table(pa.table(columns, schema=CLIPS))
    writer.close()
    return {}


def find(folder: Path, condition: str) -> Row:
    """Find the copies among the clips that fulfil a condition."""
    count = int((folder / "part.json").read_text())
    db = duckdb.connect()
    db.execute(f"SET temp_directory = '{folder}'; SET memory_limit = '1GB'")
    clips = f"(SELECT * FROM '{folder}/clips.parquet' WHERE {condition})"
    db.execute(f"CREATE VIEW candidates AS FROM {clips}")
    db.execute("CREATE VIEW nothing AS FROM candidates LIMIT 0")
    start_s = time.process_time()
    found = find_copies(
        db, "candidates", "nothing", "nothing", MAX_BITS, MIN_COSINE, folder / "kept"
    )
    cpu_s = time.process_time() - start_s
    step = min(WRITTEN, count // 2)
    planted = len(range(0, count - step, COPIES_IN))
    return {"CPU s": cpu_s, "copies": len(found), "planted": planted}


PARTS = {
    "make hashes": make_hashes,
    "make embeddings": make_embeddings,
    "all": lambda folder: find(folder, f"hash(clip_id) % {NEW_IN} > 0"),
    "one in a hundred is new": lambda folder: find(folder, "true"),
    "nothing is new": lambda folder: find(folder, "true"),
}

if __name__ == "__main__":
    be_part(PARTS)
