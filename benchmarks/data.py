r"""What the data pipeline costs, as ratios in one run; every pair works on the same clips.

`python benchmarks/data.py` renders clips, then measures: curation through Ray Data against a bare
loop over the same callables, random reads of the latent cache against FastVideo's shape of
Parquet, a manifest of a million rows, and memory as the number of clips grows tenfold.
`--data_juicer DIR`, the environment that Data-Juicer is installed in, adds its Ray executor:
    python -m venv DIR
    DIR/bin/pip install py-data-juicer==1.6.1 'ray[data]==2.60.0' \
        opencv-contrib-python-headless av aiohttp
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import yaml

from magicdistill.data_pipeline.cache import (
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.clips import (
    ClipRow,
    Video,
    clips_from_table,
    clips_to_table,
    failed,
    videos_to_table,
)
from magicdistill.data_pipeline.config import DataConfig, NullText
from magicdistill.data_pipeline.curation import accepted
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.policy import decide
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.portrait_world import write_clips
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob
from magicdistill.data_pipeline.stages.score import Score
from magicdistill.models.networks.vae import VideoVae
from magicdistill.models.networks.weights import find_weights
from magicdistill.platform.cluster import ray_cluster
from magicdistill.platform.config import ClusterConfig
from magicdistill.platform.measuring import write_result
from magicdistill.platform.recipe import load_recipe

NUM_PROCESSES = 2
CLIP_FRAMES, CLIP_SIZE = 51, 128
LATENTS = (16, 33, 68, 120)
"""129 frames of 544 x 960."""
NUM_LATENTS = 32
NUM_READS = 64
SPANS_PER_FILE = 50
GROWTH = 10
SAMPLED_EVERY_S = 0.5

Row = dict[str, Any]


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200, help="Rendered clips.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="Rows of the manifest.")
    parser.add_argument("--data_juicer", type=Path, help="Environment of Data-Juicer.")
    parser.add_argument("--only", nargs="+", choices=("ray", "juicer", "reads", "rows", "memory"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data.json"))
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        found = PARTS[args.part[0]](Path(args.part[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {"peak MiB": peak}))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measures: dict[str, Callable[[], list[Row]]] = {
            "ray": lambda: [against_a_bare_loop(folder, args.clips)],
            "juicer": lambda: against_data_juicer(folder, args.clips, args.data_juicer),
            "reads": lambda: [against_one_row_group(folder)],
            "rows": lambda: a_long_manifest(folder, args.rows),
            "memory": lambda: memory_as_clips_grow(folder, args.clips // 2),
        }
        for key in args.only or measures:
            rows += (found := measures[key]())
            for row in found:
                print(spell(row), flush=True)
    write_result(args.out, {"rows": rows, "ray": ray.__version__})
    print(f"written to {args.out}")


def spell(row: Row) -> str:
    """Return a result as a line."""
    numbers = [f"{key} {row[key]:,.4g}" for key in row if key not in ("name", "wanted")]
    wanted = f" (wanted {row['wanted']})" if "wanted" in row else ""
    return f"{row['name']}: {', '.join(numbers)}{wanted}"


# --- (a) Ray Data against a bare loop over the same callables


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
    tables = pooled(Score, (config.measures, config.decoder), blocks)
    clips = [clip for table in tables for clip in clips_from_table(table)]
    kept = accepted(decide(clips, config.policy, *config.buckets))
    job = EncodeJob(config, vae.absolute(), VideoVae.load(vae).fingerprint, root / "latents")
    per_clip = config.windows_per_clip * (2 if config.flip else 1)
    size = max(1, config.encoding.rows_per_shard // per_clip)
    blocks = [clips_to_table(kept[i : i + size]) for i in range(0, len(kept), size)]
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


# --- (b) Data-Juicer's Ray executor, on what both do


def against_data_juicer(folder: Path, count: int, environment: Path | None) -> list[Row]:
    """Filter by resolution, duration and motion from a cold start, decisions included."""
    if environment is None:
        return []
    clips = make_clips(folder / "clips", count)
    own_s = run_part("score", folder, bench_config(clips).model_dump_json())["s"]
    manifest = folder / "juicer.jsonl"
    lines = [json.dumps({"text": "", "videos": [str(clip)]}) for clip in sorted(clips.iterdir())]
    manifest.write_text("\n".join(lines) + "\n")
    recipe = {
        "project_name": "peer",
        "executor_type": "ray",
        "ray_address": "local",
        "np": NUM_PROCESSES,
        "dataset_path": str(manifest),
        "export_path": str(folder / "juicer" / "kept.jsonl"),
        "process": [
            {"video_resolution_filter": {"min_width": 64, "min_height": 64}},
            {"video_duration_filter": {"min_duration": 0.5}},
            {"video_motion_score_filter": {"min_score": 0.02, "sampling_fps": 8, "size": 64}},
        ],
    }
    path = folder / "juicer.yaml"
    path.write_text(yaml.safe_dump(recipe))
    variables = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": ""}
    start_s = time.perf_counter()
    done = subprocess.run(
        [environment.absolute() / "bin" / "dj-process", "--config", path],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    their_s = time.perf_counter() - start_s
    if done.returncode:
        output = done.stdout[-2000:] + done.stderr[-4000:]
        raise RuntimeError(f"Data-Juicer failed:\n{output}")
    return [
        {
            "name": f"filter {count} clips: Data-Juicer's seconds / ours, cold start",
            "ratio": their_s / own_s,
            "ours s": own_s,
            "Data-Juicer s": their_s,
            "wanted": "> 1",
        }
    ]


def score_and_decide(folder: Path) -> Row:
    """Start Ray, score and decide, as a process of its own would."""
    config = DataConfig.model_validate_json((folder / "part.json").read_text())
    cluster = ClusterConfig(dashboard=False, logical_cpus=8)
    with tempfile.TemporaryDirectory() as root, ray_cluster(cluster):
        curator = Curator([config], Path(root), quiet)
        curator.ingest()
        curator.score()
        curator.decide()
    return {}


# --- (c) random reads of the cache


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


# --- (d) a long manifest


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
    found = [run_part(part, place) for part in ("ingest", "know", "decide", "decide")]
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
        decoder="decord",
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


# --- (e) memory


def memory_as_clips_grow(folder: Path, count: int) -> list[Row]:
    """Return peaks of Ray's object store and of all processes for some clips and for ten times."""
    clips = make_clips(folder / "clips", count)
    few, many = (copies(clips, folder / f"times-{n}", count, n) for n in (1, GROWTH))
    rows = []
    for title, place in (("clips", few), ("ten times as many", many)):
        part = folder / f"peaks-{place.name}"
        part.mkdir()
        found = run_part("memory", part, bench_config(place).model_dump_json())
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


# --- what the parts share


def make_clips(folder: Path, count: int) -> Path:
    """Render talking portraits, once."""
    write_clips(folder, range(count), CLIP_FRAMES, CLIP_SIZE)
    return folder


def bench_config(clips: Path) -> DataConfig:
    """Return the data of portrait-tiny with a folder as the source."""
    values = load_recipe("portrait-tiny").data.model_dump()
    source = {"kind": "folder", "path": str(clips), "license": "none", "mixture": "portrait"}
    return DataConfig.model_validate(values | {"sources": [source], "num_actors": NUM_PROCESSES})


def quiet(stage: str, done: int, total: int) -> None:
    """Show no progress."""


def run_part(part: str, folder: Path, config: str = "") -> Row:
    """Run a part in a process of its own; return its result with seconds and peak memory."""
    (folder / "part.json").write_text(config)
    start_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start_s
    return json.loads(done.stdout.splitlines()[-1]) | {"s": seconds}


PARTS: dict[str, Callable[[Path], Row]] = {
    "score": score_and_decide,
    "ingest": ingest_rows,
    "know": know_rows,
    "decide": decide_rows,
    "memory": curate_and_watch,
}


if __name__ == "__main__":
    main()
