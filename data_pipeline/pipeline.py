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

from magicdistill.data_pipeline.cache import (
    NULL_TEXT,
    committed_rows,
    committed_texts,
    publish,
    row_facts,
)
from magicdistill.data_pipeline.clips import (
    ClipRow,
    Video,
    clips_from_table,
    clips_to_table,
    digest,
    failed,
    may_pass,
    videos_to_table,
)
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.policy import Decision, count_absent, decide, is_hopeless
from magicdistill.data_pipeline.progress import Bars, Progress
from magicdistill.data_pipeline.sources.listing import list_videos
from magicdistill.data_pipeline.stages.embed import (
    PROMPT_SCHEMA,
    Embed,
    EmbedJob,
    encoder_fingerprint,
    prompts_of,
    text_key,
)
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob
from magicdistill.data_pipeline.stages.run_scorers import AddScores, lacking, versions_of
from magicdistill.data_pipeline.stages.score import Score
from magicdistill.data_pipeline.storage import AnyPath, local_folder, place
from magicdistill.data_pipeline.windows import windows_of
from magicdistill.models.networks.conditions import NULL_PROMPT
from magicdistill.models.networks.vae import VideoVae

logger = logging.getLogger(__name__)

FAULTS_PER_PART = 50_000
"""Rows of the ledger's parts for what the listing already knows to be unusable."""


@dataclass(frozen=True)
class CurationResult:
    """A published cache and the story of every clip that was considered for it."""

    config: DataConfig
    cache_path: AnyPath
    """For `LatentCache`."""
    version: str
    decisions: tuple[Decision, ...]
    num_rows: int
    """Rows of the cache: windows and their mirror images."""

    @property
    def clips(self) -> list[ClipRow]:
        """The accepted clips, in the order of the cache's rows."""
        return _accepted(self.decisions)

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


@dataclass
class _Curation:
    """One config on its way to a cache."""

    config: DataConfig
    videos: Sequence[Video]
    clips: list[ClipRow]
    """In the order of the listing."""

    def take(self, rows: Sequence[ClipRow]) -> None:
        """Put rows of this config's videos in the place of its clips of the same ids."""
        ids = {video.video_id for video in self.videos}
        own = {row.clip_id: row for row in rows if row.video_id in ids}
        kept = [own.pop(clip.clip_id, clip) for clip in self.clips]
        self.clips = [*kept, *own.values()]

    def decide(self) -> list[Decision]:
        """Judge the clips."""
        return decide(self.clips, self.config.policy, self.config.bucket)


def curate(
    config: DataConfig,
    vae_directory: Path,
    root: AnyPath | str,
    progress: Progress | None = None,
) -> CurationResult:
    """Score, judge and encode everything that the sources list; redo nothing already done.

    Args:
        config: sources, policy and shapes.
        vae_directory: a folder written by `VideoVae.save`.
        root: where clips, ledger and latents live, a folder or s3://bucket/prefix; several configs
            may share one.
        progress: called as clips complete; bars on a terminal by default.

    Returns:
        The published version and a decision for every clip.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if no clip is accepted.
    """
    return curate_together([config], vae_directory, root, progress)[0]


def curate_together(
    configs: Sequence[DataConfig],
    vae_directory: Path,
    root: AnyPath | str,
    progress: Progress | None = None,
) -> list[CurationResult]:
    """Do as `curate` for several configs; those that agree in a stage pass through it at once."""
    progress = progress or Bars()
    root = place(root)
    ledger = Ledger(root / "ledger")
    with _quiet_ray_data():
        parts = _scored(configs, root, ledger, progress)
        fingerprint = VideoVae.load(vae_directory).fingerprint
        groups = _agreeing(parts, {"bucket", "windows_per_clip", "flip", "encoding", "decoder"})
        failures = None
        while failures is None or failures:  # the copy of what failed may now be accepted
            failures = []
            for group in groups:
                config = group[0].config
                job = EncodeJob(config, vae_directory.absolute(), fingerprint, root / "latents")
                decisions = [decision for part in group for decision in part.decide()]
                failures += _encode_missing(job, _accepted(decisions), ledger, progress)
            for part in parts:
                part.take(failures)
        for part in parts:
            _embed_missing(part, root / "latents", progress)
    return [_publish(part, fingerprint, root / "latents", ledger) for part in parts]


def select_clips(
    config: DataConfig, root: AnyPath | str, progress: Progress | None = None
) -> list[ClipRow]:
    """Score and judge as `curate` does, and return the accepted clips without encoding them."""
    root = place(root)
    with _quiet_ray_data():
        (part,) = _scored([config], root, Ledger(root / "ledger"), progress or Bars())
    return _accepted(part.decide())


def _scored(
    configs: Sequence[DataConfig], root: AnyPath, ledger: Ledger, progress: Progress
) -> list[_Curation]:
    """List the videos of all configs and score what is not scored yet."""
    parts = [
        _Curation(c, list_videos(c.sources, local_folder(root) / "clips"), []) for c in configs
    ]
    passing: list[ClipRow] = []
    for group in _agreeing(parts, {"measures", "decoder"}):
        videos = {video.video_id: video for part in group for video in part.videos}
        passing += _score_missing(group[0].config, list(videos.values()), ledger, progress)
    for part in parts:
        passing += _add_missing_scores(part.config, part.videos, ledger, progress)
        part.clips = _scored_clips(part.config, part.videos, ledger)
        part.take(passing)
    return parts


def _agreeing(parts: Sequence[_Curation], fields: set[str]) -> list[list[_Curation]]:
    """Group the parts whose configs have the same values in `fields`."""
    groups: dict[str, list[_Curation]] = {}
    for part in parts:
        groups.setdefault(part.config.model_dump_json(include=fields), []).append(part)
    return list(groups.values())


def _accepted(decisions: Sequence[Decision]) -> list[ClipRow]:
    return [decision.clip for decision in decisions if decision.status == "accepted"]


def _scored_clips(config: DataConfig, videos: Sequence[Video], ledger: Ledger) -> list[ClipRow]:
    """Return the clips of all videos in the order of the listing."""
    measures = config.measures
    scored = ledger.scored(videos, measures.version, measures.scorers)
    return [clip for video in videos for clip in scored.get(video.video_id, ())]


def _score_missing(
    config: DataConfig, videos: Sequence[Video], ledger: Ledger, progress: Progress
) -> list[ClipRow]:
    """Commit the clips of videos that have none; return failures that may pass, uncommitted."""
    scored = ledger.scored(videos, config.measures.version)
    missing = [video for video in videos if video.video_id not in scored]
    faulty = [failed(v, config.measures.version, v.fault) for v in missing if v.fault]
    for first in range(0, len(faulty), FAULTS_PER_PART):
        ledger.append(faulty[first : first + FAULTS_PER_PART])
    missing = [video for video in missing if not video.fault]
    if not missing:
        return []
    start_s, done = time.monotonic(), 0
    passing: list[ClipRow] = []
    size = config.videos_per_block
    blocks = [videos_to_table(missing[i : i + size]) for i in range(0, len(missing), size)]
    for table in _through_actors(blocks, Score, (config.measures, config.decoder), config):
        clips = clips_from_table(table)
        passing += [clip for clip in clips if may_pass(clip.failure)]
        ledger.append([clip for clip in clips if not may_pass(clip.failure)])
        done += len({clip.video_id for clip in clips})
        progress("score", done, len(missing))
    _log_rate("scored", len(missing), "videos", start_s)
    return passing


def _add_missing_scores(
    config: DataConfig, videos: Sequence[Video], ledger: Ledger, progress: Progress
) -> list[ClipRow]:
    """Commit the scores that clips lack; return failures that may pass, uncommitted.

    Cheap scores are taken of all clips, costly ones then of those that are not yet hopeless.
    """
    ledger.describe(config.measures.scorers)
    passing: list[ClipRow] = []
    for costly in (False, True):
        scorers = [s for s in config.measures.scorers if costly == s.COSTLY]
        versions = versions_of(scorers)
        clips = [
            clip
            for clip in (_scored_clips(config, videos, ledger) if scorers else ())
            if lacking(clip, versions)
            and not clip.failure
            and not (costly and is_hopeless(clip, config.policy, config.bucket))
        ]
        if not clips:
            continue
        start_s, done = time.monotonic(), 0
        size = config.videos_per_block
        blocks = [clips_to_table(clips[i : i + size]) for i in range(0, len(clips), size)]
        for table in _through_actors(blocks, AddScores, (scorers, config.decoder), config):
            rows = clips_from_table(table)
            passing += [row for row in rows if may_pass(row.failure)]
            ledger.append([row for row in rows if not may_pass(row.failure)])
            done += len(rows)
            progress("measure", done, len(clips))
        _log_rate("measured", len(clips), "clips", start_s)
    return passing


def _wanted_keys(
    config: DataConfig, clips: Sequence[ClipRow], vae_fingerprint: str
) -> dict[str, list[str]]:
    """Return the cache keys of every clip by clip id."""
    bucket, dtype = config.bucket, config.encoding.stored_dtype
    return {
        clip.clip_id: [
            row_facts(clip, window, bucket, vae_fingerprint, dtype).key
            for window in windows_of(clip, bucket, config.windows_per_clip, config.flip)
        ]
        for clip in clips
    }


def _encode_missing(
    job: EncodeJob,
    clips: Sequence[ClipRow],
    ledger: Ledger,
    progress: Progress,
) -> list[ClipRow]:
    """Encode accepted clips that the cache lacks; return failed rows, of which lasting ones are
    committed."""
    config, present = job.config, committed_rows(job.cache_root)
    wanted = _wanted_keys(config, clips, job.vae_fingerprint)
    by_id = {
        clip.clip_id: clip
        for clip in clips
        if any(key not in present for key in wanted[clip.clip_id])
    }
    missing = list(by_id.values())
    if not missing:
        return []
    start_s, done = time.monotonic(), 0
    failed_clips: list[ClipRow] = []
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
        failed_clips += failures
        ledger.append([clip for clip in failures if not may_pass(clip.failure)])
        done += len(reports)
        progress("encode", done, len(missing))
    num_rows = sum(len(wanted[clip.clip_id]) for clip in missing)
    _log_rate("encoded", num_rows, "windows", start_s)
    return failed_clips


def _embed_missing(part: _Curation, cache_root: AnyPath, progress: Progress) -> None:
    """Embed the captions of accepted clips, and the null prompt, that the cache lacks."""
    prompts = part.config.prompts
    if prompts is None:
        return
    fingerprint, present = encoder_fingerprint(prompts.encoder), committed_texts(cache_root)
    wanted = prompts_of(_accepted(part.decide()), prompts, fingerprint)
    missing = [{"key": key, "prompt": wanted[key]} for key in wanted if key not in present]
    if not missing:
        return
    start_s, done, size = time.monotonic(), 0, prompts.prompts_per_shard
    table = pa.Table.from_pylist(missing, schema=PROMPT_SCHEMA)
    blocks = [table.slice(first, size) for first in range(0, len(missing), size)]
    job = EmbedJob(prompts, fingerprint, cache_root)
    num_gpus = prompts.num_gpus_per_actor
    for embedded in _through_actors(blocks, Embed, (job,), part.config, num_gpus):
        done += len(embedded)
        progress("embed", done, len(missing))
    _log_rate("embedded", len(missing), "prompts", start_s)


def _text_keys(config: DataConfig, clips: Sequence[ClipRow]) -> tuple[dict[str, str], str]:
    """Return the text key of every clip by its id, and that of the null prompt."""
    prompts = config.prompts
    if prompts is None:
        return {clip.clip_id: NULL_TEXT for clip in clips}, NULL_TEXT
    fingerprint = encoder_fingerprint(prompts.encoder)
    keys = {clip.clip_id: text_key(clip.caption, prompts, fingerprint) for clip in clips}
    return keys, text_key(NULL_PROMPT, prompts, fingerprint)


def _publish(
    part: _Curation, vae_fingerprint: str, cache_root: AnyPath, ledger: Ledger
) -> CurationResult:
    config, decisions = part.config, part.decide()
    wanted = _wanted_keys(config, _accepted(decisions), vae_fingerprint)
    for reason, count in count_absent([decision.clip for decision in decisions]).items():
        logger.warning("%s: %d clips are judged without that score", reason, count)
    present = committed_rows(cache_root)
    texts, null_key = _text_keys(config, _accepted(decisions))
    entries = [
        present[key]
        | {
            "clip_id": d.clip.clip_id,
            "source_id": d.clip.source_id,
            "text_key": texts[d.clip.clip_id],
        }
        for d in decisions
        if d.status == "accepted"
        for key in wanted[d.clip.clip_id]
    ]
    ledger.write_decisions(digest(config.model_dump_json()), decisions)
    if not entries:
        reasons = Counter(reason for d in decisions for reason in d.reasons).most_common(3)
        raise ValueError(f"no clip was accepted; the most frequent reasons: {reasons}")
    path = publish(cache_root, entries, config.null_text, null_key)
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
