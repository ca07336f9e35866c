"""Curate: sources -> scored clips -> kept clips -> latent cache, through Ray Data."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from magicdistill.data_pipeline.cache import committed_rows, publish, row_facts
from magicdistill.data_pipeline.clips import (
    ClipRow,
    Video,
    clips_from_table,
    clips_to_table,
    digest,
    videos_to_table,
)
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.policy import Decision, decide
from magicdistill.data_pipeline.progress import Bars, Progress
from magicdistill.data_pipeline.sources.listing import list_videos
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob
from magicdistill.data_pipeline.stages.score import Score
from magicdistill.data_pipeline.windows import windows_of
from magicdistill.models.networks.vae import VideoVae

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurationResult:
    """A published cache and the story of every clip that was considered for it."""

    config: DataConfig
    cache_path: Path
    """For `LatentCache`."""
    version: str
    decisions: tuple[Decision, ...]
    num_rows: int
    """Rows of the cache: windows and their mirror images."""

    @property
    def clips(self) -> list[ClipRow]:
        """The accepted clips, in the order of the cache's rows."""
        return [d.clip for d in self.decisions if d.status == "accepted"]

    @property
    def rejected(self) -> list[Decision]:
        """Clips that the policy turned down."""
        return [d for d in self.decisions if d.status == "rejected"]

    @property
    def failed(self) -> list[Decision]:
        """Files and clips that could not be read."""
        return [d for d in self.decisions if d.status == "failed"]

    @property
    def counts(self) -> dict[str, int]:
        """Clips by status, and `rows`."""
        found = Counter(decision.status for decision in self.decisions)
        statuses = ("accepted", "rejected", "failed")
        return {status: found[status] for status in statuses} | {"rows": self.num_rows}


def curate(
    config: DataConfig, vae_directory: Path, root: Path, progress: Progress | None = None
) -> CurationResult:
    """Score, judge and encode everything that the sources list; redo nothing already done.

    Args:
        config: sources, policy and shapes.
        vae_directory: a folder written by `VideoVae.save`.
        root: where clips, ledger and latents live; several configs may share one.
        progress: called as clips complete; bars on a terminal by default.

    Returns:
        The published version and a decision for every clip.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if no clip is accepted.
    """
    progress = progress or Bars()
    root = root.absolute()
    ledger = Ledger(root / "ledger")
    videos = list_videos(config.sources, root / "clips")
    with _quiet_ray_data():
        _score_missing(config, videos, ledger, progress)
        clips = _scored_clips(config, videos, ledger)
        fingerprint = VideoVae.load(vae_directory).fingerprint
        wanted = _wanted_keys(config, clips, fingerprint)
        job = EncodeJob(config, vae_directory.absolute(), fingerprint, root / "latents")
        _encode_missing(job, clips, wanted, ledger, progress)
    return _publish(config, videos, wanted, root / "latents", ledger)


def select_clips(config: DataConfig, root: Path, progress: Progress | None = None) -> list[ClipRow]:
    """Score and judge as `curate` does, and return the accepted clips without encoding them."""
    root = root.absolute()
    ledger = Ledger(root / "ledger")
    videos = list_videos(config.sources, root / "clips")
    with _quiet_ray_data():
        _score_missing(config, videos, ledger, progress or Bars())
    decisions = decide(_scored_clips(config, videos, ledger), config.policy, config.bucket)
    return [decision.clip for decision in decisions if decision.status == "accepted"]


def _scored_clips(config: DataConfig, videos: Sequence[Video], ledger: Ledger) -> list[ClipRow]:
    """Return the clips of all videos in the order of the listing."""
    scored = ledger.scored(videos, config.measures.version)
    return [clip for video in videos for clip in scored.get(video.video_id, ())]


def _score_missing(
    config: DataConfig, videos: Sequence[Video], ledger: Ledger, progress: Progress
) -> None:
    scored = ledger.scored(videos, config.measures.version)
    missing = [video for video in videos if video.video_id not in scored]
    if not missing:
        return
    start_s, done = time.monotonic(), 0
    size = config.videos_per_block
    blocks = [videos_to_table(missing[i : i + size]) for i in range(0, len(missing), size)]
    for table in _through_actors(blocks, Score, (config.measures, config.decoder), config):
        clips = clips_from_table(table)
        ledger.append(clips)
        done += len({clip.video_id for clip in clips})
        progress("score", done, len(missing))
    _log_rate("scored", len(missing), "videos", start_s)


def _wanted_keys(
    config: DataConfig, clips: Sequence[ClipRow], vae_fingerprint: str
) -> dict[str, list[str]]:
    """Return the cache keys of every accepted clip by clip id."""
    bucket, dtype = config.bucket, config.encoding.stored_dtype
    return {
        decision.clip.clip_id: [
            row_facts(decision.clip, window, bucket, vae_fingerprint, dtype).key
            for window in windows_of(decision.clip, bucket, config.windows_per_clip, config.flip)
        ]
        for decision in decide(clips, config.policy, bucket)
        if decision.status == "accepted"
    }


def _encode_missing(
    job: EncodeJob,
    clips: Sequence[ClipRow],
    wanted: dict[str, list[str]],
    ledger: Ledger,
    progress: Progress,
) -> None:
    config, present = job.config, committed_rows(job.cache_root)
    missing = [
        clip for clip in clips if any(key not in present for key in wanted.get(clip.clip_id, ()))
    ]
    if not missing:
        return
    start_s, done = time.monotonic(), 0
    by_id = {clip.clip_id: clip for clip in missing}
    size = max(1, config.encoding.rows_per_shard // max(map(len, wanted.values())))
    blocks = [clips_to_table(missing[i : i + size]) for i in range(0, len(missing), size)]
    num_gpus = config.encoding.num_gpus_per_actor
    for table in _through_actors(blocks, Encode, (job,), config, num_gpus):
        reports = table.to_pylist()
        failures = [
            replace(by_id[report["clip_id"]], failure=f"encode: {report['failure']}")
            for report in reports
            if report["failure"]
        ]
        if failures:
            ledger.append(failures)
        done += len(reports)
        progress("encode", done, len(missing))
    num_rows = sum(len(wanted[clip.clip_id]) for clip in missing)
    _log_rate("encoded", num_rows, "windows", start_s)


def _publish(
    config: DataConfig,
    videos: Sequence[Video],
    wanted: dict[str, list[str]],
    cache_root: Path,
    ledger: Ledger,
) -> CurationResult:
    clips = _scored_clips(config, videos, ledger)
    decisions = decide(clips, config.policy, config.bucket)
    present = committed_rows(cache_root)
    entries = [
        present[key] | {"clip_id": d.clip.clip_id, "source_id": d.clip.source_id}
        for d in decisions
        if d.status == "accepted"
        for key in wanted[d.clip.clip_id]
    ]
    ledger.write_decisions(digest(config.model_dump_json()), decisions)
    if not entries:
        reasons = Counter(reason for d in decisions for reason in d.reasons).most_common(3)
        raise ValueError(f"no clip was accepted; the most frequent reasons: {reasons}")
    path = publish(cache_root, entries, config.null_text)
    result = CurationResult(config, path, path.name, tuple(decisions), len(entries))
    logger.info("%s: latent cache %s", result.counts, result.version)
    return result


def _through_actors(
    blocks: Sequence[pa.Table],
    stage: type,
    arguments: tuple[Any, ...],
    config: DataConfig,
    num_gpus: float = 0.0,
) -> Iterator[pa.Table]:
    """Yield what a stage makes of each block, as the actors finish them."""
    dataset = ray.data.from_arrow(list(blocks)).map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(config.num_actors, len(blocks))),
        num_cpus=1,
        num_gpus=num_gpus or None,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _log_rate(verb: str, count: int, unit: str, start_s: float) -> None:
    elapsed_s = time.monotonic() - start_s
    logger.info("%s %d %s in %.1f s (%.1f per s)", verb, count, unit, elapsed_s, count / elapsed_s)


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Silence Ray Data's bars and plans: this module reports progress itself."""
    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    loggers = {
        logging.getLogger("ray.data"): logging.WARNING,  # plans and resource tables
        logging.getLogger("ray.data._internal.progress"): logging.ERROR,  # "bars are disabled"
    }
    levels = {log: log.level for log in loggers}
    context.enable_progress_bars = False
    for log, level in loggers.items():
        log.setLevel(max(level, log.getEffectiveLevel()))
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for log, level in levels.items():
            log.setLevel(level)
