"""Curation: against a bare loop, and its memory as clips grow."""

import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
import torch
from data_shared import NUM_PROCESSES, Row, be_part, bench_config, make_clips, quiet, run_part

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.latents.cache import committed_rows
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.rows import videos_to_table
from magicdistill.data_pipeline.selection.curation_state import CurationState
from magicdistill.data_pipeline.sources.listing import SourceLister, iter_videos
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob
from magicdistill.data_pipeline.stages.score import Score
from magicdistill.models.locations import find_weights
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import ClusterConfig

GROWTH = 10
SAMPLED_EVERY_S = 0.5


def against_a_bare_loop(folder: Path, count: int) -> Row:
    """Score and encode all clips both ways, process starts included; Ray itself runs already."""
    config = bench_config(make_clips(folder / "clips", count))
    vae = find_weights(load_recipe("portrait-tiny").model.vae or "", "model.vae")
    start_s = time.perf_counter()
    num_bare = bare_loop(config, vae, folder / "bare")
    bare_s = time.perf_counter() - start_s
    with ray_cluster(ClusterConfig(dashboard=False, logical_cpus=8)):
        start_s = time.perf_counter()
        curator = Curator([config], folder / "ray", quiet)
        curator.ingest()
        curator.score()
        (result,) = curator.encode(vae)
        ray_s = time.perf_counter() - start_s
    assert result.num_rows == num_bare
    return {
        "name": f"curate and encode {count} clips: Ray Data / bare loop, clips per second",
        "ratio": bare_s / ray_s,
        "Ray Data s": ray_s,
        "bare loop s": bare_s,
        "wanted": ">= 0.9",
    }


def bare_loop(config: DataConfig, vae: Path, root: Path) -> int:
    """Do what the pipeline does with a pool of processes; return the number of latents."""
    videos = list(iter_videos(config.sources, root / "clips"))
    size = config.videos_per_block
    blocks = [videos_to_table(videos[i : i + size]) for i in range(0, len(videos), size)]
    database = Database()
    ledger = Ledger(root / "ledger", database)
    for table in pooled(Score, (config.measures, config.decoder), blocks):
        ledger.commit(table)
    listing = SourceLister(config.sources, root / "clips")
    state = CurationState(config, database, ledger, listing, Takedowns({}, {}))
    state.judge(Ledger(root / "temporary", database))
    kept = pa.concat_tables(state.clips.tables("status = 'accepted'"))
    job = EncodeJob(config, vae.absolute(), VideoVae.load(vae).fingerprint, root / "latents")
    per_clip = config.windows_per_clip * (2 if config.flip else 1)
    size = max(1, config.encoding.rows_per_shard // per_clip)
    blocks = [kept.slice(first, size) for first in range(0, len(kept), size)]
    pooled(Encode, (job,), blocks)
    return len(committed_rows(root / "latents"))


def pooled(stage: type, arguments: tuple[Any, ...], blocks: Sequence[pa.Table]) -> list[pa.Table]:
    """Return what a stage makes of blocks, each process with a stage of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(NUM_PROCESSES, _build, (stage, arguments)) as pool:
        return list(pool.imap_unordered(_call, blocks))


_STAGE: list[Any] = []


def _build(stage: type, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    _STAGE.append(stage(*arguments))


def _call(block: pa.Table) -> pa.Table:
    return _STAGE[0](block)


def memory_as_clips_grow(folder: Path, count: int) -> list[Row]:
    """Return peaks of Ray's object store and of all processes for some clips and for ten times."""
    clips = make_clips(folder / "clips", count)
    few, many = (copies(clips, folder / f"times-{n}", count, n) for n in (1, GROWTH))
    rows = []
    for title, place in (("clips", few), ("ten times as many", many)):
        part = folder / f"peaks-{place.name}"
        part.mkdir()
        found = run_part(__file__, "memory", part, bench_config(place).model_dump_json())
        rows.append({"name": f"curate and encode {count}, {title}"} | found)
    for key in ("object store MiB", "resident MiB"):
        rows[1][f"{key} / before"] = rows[1][key] / rows[0][key]
    return rows


def copies(clips: Path, target: Path, count: int, times: int) -> Path:
    """Copy clips so that each copy has content of its own: a box that players skip follows."""
    target.mkdir()
    for number in range(times):
        for clip in sorted(clips.iterdir())[:count]:
            box = (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
            (target / f"{clip.stem}-{number}.mp4").write_bytes(clip.read_bytes() + box)
    return target


def curate_and_watch(folder: Path) -> Row:
    """Curate and encode; return the peaks."""
    config = DataConfig.model_validate_json((folder / "part.json").read_text())
    vae = find_weights(load_recipe("portrait-tiny").model.vae or "", "model.vae")
    with ray_cluster(ClusterConfig(dashboard=False, logical_cpus=8)), watched() as peaks:
        curator = Curator([config], folder / "data", quiet)
        curator.ingest()
        curator.score()
        (result,) = curator.encode(vae)
    return dict(peaks) | {"latents": result.num_rows}


@contextmanager
def watched() -> Iterator[Row]:
    """Sample the memory of this process, of what it started and of Ray's object store."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    peaks: Row = {"object store MiB": 0.0, "resident MiB": 0.0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLED_EVERY_S):
            store = get_memory_info_reply(state).store_stats.object_store_bytes_used
            for key, found in (("object store MiB", store), ("resident MiB", proportional())):
                peaks[key] = max(peaks[key], found / 2**20)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def proportional() -> int:
    """Return the proportional set size of this process and all below it, in bytes."""
    total, own = 0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


PARTS = {"memory": curate_and_watch}

if __name__ == "__main__":
    be_part(PARTS)
