"""Rows: random reads of a latent cache, and a manifest of a million lines."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from data_shared import Row, be_part, quiet, run_part

from magicdistill.data_pipeline.config import DataConfig, NullText
from magicdistill.data_pipeline.latents.cache import (
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.rows import (
    ClipRow,
    Video,
    failed,
)
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.portrait_world.world import write_clips
from magicdistill.platform.config.recipe import load_recipe

LATENTS = (16, 33, 68, 120)
"""129 frames of 544 x 960."""
NUM_LATENTS = 32
NUM_READS = 64
SPANS_PER_FILE = 50


def against_one_row_group(folder: Path) -> Row:
    """Read random clips from a cache and from Parquet with one row group a file."""
    root = folder / "reads"
    generator = torch.Generator().manual_seed(0)
    rows = [
        LatentRow(
            RowFacts(str(i), str(i), str(i), "", "general", "129x544x960@24", 0, False),
            torch.randn(LATENTS, generator=generator).bfloat16(),
        )
        for i in range(NUM_LATENTS)
    ]
    write_shard(root, rows)
    text = NullText(num_tokens=4, token_dim=8, pooled_dim=8)
    cache = LatentCache(publish(root, list(committed_rows(root).values()), text))
    table = pa.table(
        {
            "id": [row.facts.key for row in rows],
            "vae_latent_bytes": [row.latents.view(torch.int16).numpy().tobytes() for row in rows],
            "vae_latent_shape": [list(row.latents.shape) for row in rows],
        }
    )
    peer = folder / "one-row-group.parquet"
    pq.write_table(table, peer, row_group_size=NUM_LATENTS)
    order = np.random.default_rng(0).integers(NUM_LATENTS, size=NUM_READS).tolist()
    position = {row.facts.key: i for i, row in enumerate(rows)}
    for i in order[:4]:
        ours = cache.read(int(i))
        theirs = read_one(peer, position[ours.facts.key])
        assert torch.equal(ours.latents.view(torch.int16), theirs)
    own = reads_per_s(lambda i: cache.read(i), order)
    other = reads_per_s(lambda i: read_one(peer, i), order[: NUM_READS // 4])
    return {
        "name": "random reads of 129 x 544 x 960 latents per second: cache / FastVideo's Parquet",
        "ratio": own / other,
        "cache": own,
        "FastVideo's shape": other,
        "wanted": ">= 20",
    }


def read_one(path: Path, row: int) -> torch.Tensor:
    """Read a row as a reader of one row group has to."""
    found = pq.ParquetFile(path).read_row_group(0).slice(row, 1).to_pylist()[0]
    flat = torch.frombuffer(bytearray(found["vae_latent_bytes"]), dtype=torch.int16)
    return flat.view(found["vae_latent_shape"])


def reads_per_s(read: Callable[[int], object], order: Sequence[int]) -> float:
    """Return how many rows a second are read, once the file is warm."""
    start_s = time.perf_counter()
    for row in order:
        read(int(row))
    return len(order) / (time.perf_counter() - start_s)


def a_long_manifest(folder: Path, count: int) -> list[Row]:
    """Ingest, decide and do both again; half of the rows name files that do not exist.

    The scores of the other half are written by hand: this is about the rows, not about decoding.
    """
    place = folder / "rows"
    (clip,) = write_clips(place / "videos", [0])
    num_files = -(-count // SPANS_PER_FILE)
    with (place / "manifest.jsonl").open("w") as file:
        for row in range(count):
            film, span = divmod(row, SPANS_PER_FILE)
            name = f"{film:06d}.mp4" if row % 2 else f"absent-{film:06d}.mp4"
            facts = {
                "source_id": f"film-{film:06d}",
                "dataset": "bench",
                "uri": f"videos/{name}",
                "license": "none",
                "t0": span / 25,
                "t1": (span + 1) / 25,
                "caption": "a person talks",
                "imported_scores": {"clarity": 0.8},
            }
            file.write(json.dumps(facts) + "\n")
    for film in range(num_files):
        os.link(clip, place / "videos" / f"{film:06d}.mp4")
    found = [run_part(__file__, part, place) for part in ("ingest", "know", "decide", "decide")]
    titles = ("ingest", "(scores written by hand)", "decide", "decide again")
    return [
        {"name": f"{count:,} rows, {title}"} | part
        for title, part in zip(titles, found, strict=True)
    ]


def rows_config(place: Path) -> DataConfig:
    """Return the config of the long manifest."""
    values = load_recipe("portrait-tiny").data.model_dump()
    source = {"kind": "jsonl", "manifests": [place / "manifest.jsonl"], "mixture": "portrait"}
    return DataConfig.model_validate(values | {"sources": [source]})


def ingest_rows(place: Path) -> Row:
    """List the manifest and commit what is missing."""
    Curator([rows_config(place)], place / "data", quiet).ingest()
    return {}


def know_rows(place: Path) -> Row:
    """Commit scores for every row whose file exists."""
    config, ledger = rows_config(place), Ledger(place / "data" / "ledger")
    clips: list[ClipRow] = []
    for number, video in enumerate(iter_videos(config.sources, place / "data" / "clips")):
        if video.fault:
            continue
        clips.append(known(video, number, config.measures.version))
        if len(clips) == 50_000:
            ledger.append(clips)
            clips = []
    ledger.append(clips)
    return {}


def known(video: Video, number: int, measures: str) -> ClipRow:
    """Return a row as scoring would have made it, with content of its own."""
    return replace(
        failed(video, measures, reason=""),
        clip_id=video.video_id,
        stop=51,
        content_hash=f"{number:016x}",
        decoder="pyav",
        width=64,
        height=64,
        fps=24.0,
        num_frames_header=51,
        num_frames_decoded=51,
        motion_px=(number % 100) / 50,
    )


def decide_rows(place: Path) -> Row:
    """Judge everything; nothing may be left to score."""
    curator = Curator([rows_config(place)], place / "data", quiet)
    curator.ingest()
    (selection,) = curator.decide()
    assert not selection.num_unscored
    return selection.counts


PARTS = {"ingest": ingest_rows, "know": know_rows, "decide": decide_rows}

if __name__ == "__main__":
    be_part(PARTS)
