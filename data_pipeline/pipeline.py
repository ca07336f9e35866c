"""Curate: sources -> scored clips -> accepted clips -> latent cache, through Ray Data."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath, local_folder, place
from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.data_pipeline.latents.cache import committed_rows
from magicdistill.data_pipeline.latents.text_shards import committed_texts
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.policy import count_absent, count_incomparable, is_hopeless
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.progress import Bars, Progress
from magicdistill.data_pipeline.rows import (
    ClipRow,
    clips_from_table,
    clips_to_table,
    digest,
    failed,
    is_temporary,
    videos_to_table,
)
from magicdistill.data_pipeline.selection.curation_result import (
    CurationResult,
    Selection,
    StageTiming,
    accepted,
)
from magicdistill.data_pipeline.selection.curation_state import CurationState, agreeing
from magicdistill.data_pipeline.selection.publishing import publish_selection, wanted_keys
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.stages.embed import (
    PROMPT_SCHEMA,
    Embed,
    EmbedJob,
    encoder_fingerprint,
    prompts_of,
)
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob, fingerprint_of
from magicdistill.data_pipeline.stages.run_scorers import (
    AddScores,
    gpus_for,
    lacking,
    versions_of,
)
from magicdistill.data_pipeline.stages.score import Score

logger = logging.getLogger(__name__)

MAX_BLOCKS = 2048
"""Most blocks in one Ray Data pipeline; with 16 videos a block that is about 64 MB of rows."""
FAULTS_PER_PART = 50_000
"""Rows in one part of the ledger, for videos that the listing already knows to be unusable."""


AGREED_TO_ENCODE = (
    "bucket",
    "other_buckets",
    "windows_per_clip",
    "flip",
    "encoding",
    "decoder",
    "policy.crop_bars",
)
"""Fields of a config that shape latents: configs that agree in them are encoded together."""


def curate(
    config: DataConfig,
    vae_directory: Path,
    root: AnyPath | str,
    progress: Progress | None = None,
) -> CurationResult:
    """Score, decide and encode everything that the sources list; repeat nothing already done.

    Args:
        config: sources, policy and shapes.
        vae_directory: a folder written by `VideoVae.save`.
        root: folder or s3://bucket/prefix of clips, ledger and latents; configs may share one.
        progress: called as a stage begins and as its items complete; `Bars` by default.

    Returns:
        The published version and a decision for every clip.

    Raises:
        FileNotFoundError: if a source does not exist.
        NothingAcceptedError: if no clip is accepted.
    """
    return curate_together([config], vae_directory, root, progress)[0]


def curate_together(
    configs: Sequence[DataConfig],
    vae_directory: Path,
    root: AnyPath | str,
    progress: Progress | None = None,
) -> list[CurationResult]:
    """Curate several configs; those that agree in a stage's settings go through it together.

    The clips that a config accepts are held out from all configs before it. With the training
    config first and the evaluation's second, no training clip is a copy of a held-out one.
    """
    curator = Curator(configs, root, progress)
    curator.ingest()
    curator.score()
    return curator.encode(vae_directory)


def select_clips(
    config: DataConfig, root: AnyPath | str, progress: Progress | None = None
) -> list[ClipRow]:
    """Score and decide as `curate` does, and return the accepted clips without encoding them."""
    curator = Curator([config], root, progress)
    curator.ingest()
    curator.score()
    return curator.decide()[0].clips


class Curator:
    """Takes configs through the stages; each stage does only what earlier runs have not done."""

    def __init__(
        self,
        configs: Sequence[DataConfig],
        root: AnyPath | str,
        progress: Progress | None = None,
        before_work: Callable[[], object] = lambda: None,
    ) -> None:
        """List the videos of all configs.

        Args:
            configs: the configs to curate; clips of each are held out from those before it.
            root: folder or s3://bucket/prefix of clips, ledger and latents.
            progress: called as a stage begins and as its items complete; `Bars` by default.
            before_work: called before each use of Ray Data, so never if everything is done.

        Raises:
            FileNotFoundError: if a source does not exist.
            PathError: if nothing can be written in a local `root`.
        """
        self.timings: list[StageTiming] = []
        """One entry for each stage that had something to do."""
        self._root = place(root)
        if isinstance(self._root, Path):
            demand_output_folder(self._root, "data_root")
        self._progress = progress or Bars()
        self._before_work = before_work
        self._ledger = Ledger(self._root / "ledger")
        takedowns = Takedowns.load(self._root / "ledger")
        clips = local_folder(self._root) / "clips"
        self._states = [
            CurationState(c, [*takedowns.mark(iter_videos(c.sources, clips))], takedowns)
            for c in configs
        ]
        self._temporary: list[ClipRow] = []

    def ingest(self) -> None:
        """Commit a failed row for every video that the listing knows to be unusable."""
        for state in self._states:
            version = state.config.measures.version
            faulty = [video for video in state.videos if video.fault]
            known = self._ledger.scored(faulty, version) if faulty else {}
            rows = [failed(v, version, v.fault) for v in faulty if v.video_id not in known]
            for first in range(0, len(rows), FAULTS_PER_PART):
                self._ledger.append(rows[first : first + FAULTS_PER_PART])

    def score(self) -> None:
        """Find and score the clips of all videos."""
        for group in agreeing(self._states, ("measures", "decoder")):
            self._score_missing(group)
        for state in self._states:
            self._add_missing_scores(state)

    def decide(self) -> list[Selection]:
        """Decide on all scored clips, write the decisions, and merge small parts of the ledger."""
        self._read()
        self._judge()
        selections = [state.select() for state in self._states]
        self._warn_of_near_copies()
        for selection in selections:
            absent = count_absent([decision.clip for decision in selection.decisions])
            for reason, count in absent.items():
                logger.warning("%s: %d clips are judged without that score", reason, count)
            name = digest(selection.config.model_dump_json())
            self._ledger.write_decisions(name, selection.decisions)
        self._merge_parts()
        return selections

    def _warn_of_near_copies(self) -> None:
        """Warn if held-out clips lack the hashes or embeddings by which copies are found."""
        for number, state in enumerate(self._states, 1):
            held_out = [c for other in self._states[number:] for c in accepted(other.decisions)]
            versions = versions_of(state.config.measures.scorers)
            for kind, count in count_incomparable(held_out, versions).items():
                logger.warning(
                    "%d held-out clips were not seen by the same %s: near copies of them stay "
                    "among the other clips; take it of the held-out clips too",
                    count,
                    kind,
                )

    def encode(self, vae_directory: Path) -> list[CurationResult]:
        """Encode the accepted clips and publish a version of the cache for each config.

        Raises:
            NothingAcceptedError: if no clip of a config is accepted.
        """
        fingerprint = _fingerprint(vae_directory.absolute())
        cache = self._root / "latents"
        self._read()
        groups = agreeing(self._states, AGREED_TO_ENCODE)
        failures = None
        while failures is None or failures:  # if a clip fails, a copy of it may be accepted instead
            failures = []
            self._judge()
            for group in groups:
                job = EncodeJob(group[0].config, vae_directory.absolute(), fingerprint, cache)
                clips = [clip for state in group for clip in accepted(state.decisions)]
                failures += self._encode_missing(job, clips)
            self._temporary += failures
            for state in self._states:
                state.take(failures)
        for state in self._states:
            self._embed_missing(state, cache)
        return [publish_selection(selection, fingerprint, cache) for selection in self.decide()]

    def _read(self) -> None:
        """Fill the states with the ledger's clips and this run's temporary failures."""
        for state in self._states:
            state.clips = self._scored_clips(state)
            state.take(self._temporary)

    def _judge(self) -> None:
        """Decide on all clips, last config first: what it accepts is held out from the others."""
        held_out: list[ClipRow] = []
        for state in reversed(self._states):
            state.judge(held_out)
            held_out += accepted(state.decisions)

    def _scored_clips(self, state: CurationState) -> list[ClipRow]:
        """Return the clips of all videos in the order of the listing."""
        measures = state.config.measures
        scored = self._ledger.scored(state.videos, measures.version, measures.scorers)
        return [clip for video in state.videos for clip in scored.get(video.video_id, ())]

    def _score_missing(self, group: Sequence[CurationState]) -> None:
        """Find the clips of videos that have none; commit all rows except temporary failures."""
        config = group[0].config
        videos = {v.video_id: v for state in group for v in state.videos if not v.fault}
        scored = self._ledger.scored(videos.values(), config.measures.version)
        missing = [video for name, video in videos.items() if name not in scored]
        size = config.videos_per_block
        blocks = [videos_to_table(missing[i : i + size]) for i in range(0, len(missing), size)]
        with self._timed("score", len(missing), "videos") as advance:
            for table in self._through(blocks, Score, (config.measures, config.decoder), config):
                clips = clips_from_table(table)
                self._commit(clips)
                advance(len({clip.video.video_id for clip in clips}))

    def _add_missing_scores(self, state: CurationState) -> None:
        """Commit the scores that clips lack; temporary failures are not committed.

        Cheap scorers see all clips; costly ones then see only clips that are not yet rejected.
        """
        config = state.config
        self._ledger.describe(config.measures.scorers)
        for costly in (False, True):
            scorers = [s for s in config.measures.scorers if costly == s.COSTLY]
            versions = versions_of(scorers)
            clips = [
                clip
                for clip in (self._scored_clips(state) if scorers else ())
                if lacking(clip, versions)
                and not clip.failure
                and not (costly and is_hopeless(clip, config.policy, *config.buckets))
            ]
            size, gpus = config.videos_per_block, gpus_for(scorers, config.measures)
            blocks = [clips_to_table(clips[i : i + size]) for i in range(0, len(clips), size)]
            arguments = (scorers, config.decoder, gpus > 0)
            with self._timed("measure", len(clips), "clips") as advance:
                for table in self._through(blocks, AddScores, arguments, config, gpus):
                    rows = clips_from_table(table)
                    self._commit(rows)
                    advance(len(rows))

    def _encode_missing(self, job: EncodeJob, clips: Sequence[ClipRow]) -> list[ClipRow]:
        """Encode accepted clips that the cache lacks, and return the rows of those that failed.

        Temporary failures are not committed.
        """
        config, present = job.config, committed_rows(job.cache_root)
        wanted = wanted_keys(config, clips, job.vae_fingerprint)
        by_id = {
            clip.clip_id: clip
            for clip in clips
            if any(key not in present for key in wanted[clip.clip_id])
        }
        missing = sorted(  # sorted by shape, because a batch has one
            by_id.values(), key=lambda clip: str(config.bucket_of(clip.width, clip.height))
        )
        if not missing:
            return []
        failures: list[ClipRow] = []
        size = max(1, config.encoding.rows_per_shard // max(map(len, wanted.values())))
        blocks = [clips_to_table(missing[i : i + size]) for i in range(0, len(missing), size)]
        num_gpus = config.encoding.num_gpus_per_actor
        with self._timed("encode", len(missing), "clips") as advance:
            for table in self._through(blocks, Encode, (job,), config, num_gpus):
                reports = table.to_pylist()
                rows = [
                    replace(by_id[report["clip_id"]], failure=f"encode: {report['failure']}")
                    for report in reports
                    if report["failure"]
                ]
                failures += rows
                self._commit(rows)
                advance(len(reports))
        return failures

    def _embed_missing(self, state: CurationState, cache_root: AnyPath) -> None:
        """Embed those captions of accepted clips that the cache lacks, and the null prompt."""
        prompts = state.config.prompts
        if prompts is None:
            return
        fingerprint, present = encoder_fingerprint(prompts.encoder), committed_texts(cache_root)
        wanted = prompts_of(accepted(state.decisions), prompts, fingerprint)
        missing = [{"key": key, "prompt": wanted[key]} for key in wanted if key not in present]
        table, size = pa.Table.from_pylist(missing, schema=PROMPT_SCHEMA), prompts.prompts_per_shard
        blocks = [table.slice(first, size) for first in range(0, len(missing), size)]
        job = EmbedJob(prompts, fingerprint, cache_root)
        num_gpus = prompts.num_gpus_per_actor
        with self._timed("embed", len(missing), "prompts") as advance:
            for embedded in self._through(blocks, Embed, (job,), state.config, num_gpus):
                advance(len(embedded))

    def _commit(self, clips: Sequence[ClipRow]) -> None:
        """Append rows to the ledger; temporary failures are only kept for this run's decisions."""
        self._temporary += [clip for clip in clips if is_temporary(clip.failure)]
        self._ledger.append([clip for clip in clips if not is_temporary(clip.failure)])

    def _merge_parts(self) -> None:
        """Merge small parts of the ledger; if that fails, reading it only stays slower."""
        try:
            if count := self._ledger.compact():
                logger.info("merged %d small parts of the ledger", count)
        except (OSError, pa.ArrowException) as error:
            logger.warning("parts of the ledger are not merged (does --verify pass?): %s", error)

    @contextmanager
    def _timed(self, stage: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Time a stage over `total` items and report progress as the body calls `advance`.

        Nothing is recorded if there are no items.
        """
        start_s, done = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(stage, done, total)

        if total:
            self._progress(stage, 0, total)
        yield advance
        if total:
            self.timings.append(StageTiming(stage, total, unit, time.monotonic() - start_s))
            logger.info("%s", self.timings[-1])

    def _through(
        self,
        blocks: Sequence[pa.Table],
        stage: type,
        arguments: tuple[Any, ...],
        config: DataConfig,
        num_gpus: float = 0.0,
    ) -> Iterator[pa.Table]:
        """Run a stage over blocks in a pool of actors; yield the results as they are finished."""
        if not blocks:
            return
        if (
            len(blocks) > MAX_BLOCKS
        ):  # all blocks of a pipeline are in the object store from its start
            for first in range(0, len(blocks), MAX_BLOCKS):
                some = blocks[first : first + MAX_BLOCKS]
                yield from self._through(some, stage, arguments, config, num_gpus)
            return
        self._before_work()
        with _quiet_ray_data():
            dataset = ray.data.from_blocks(list(blocks)).map_batches(
                stage,
                fn_constructor_args=arguments,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(config.num_actors, len(blocks))),
                num_cpus=1,
                num_gpus=num_gpus or None,
            )
            yield from dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )


def _fingerprint(vae_directory: Path) -> str:
    """Return the VAE's fingerprint; if Ray runs, a worker on this node computes it.

    The packages that load a VAE take seconds to import, and the workers need them anyway.
    """
    if not ray.is_initialized():
        return fingerprint_of(vae_directory)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    task: Any = ray.remote(fingerprint_of)
    return ray.get(task.options(num_cpus=0, scheduling_strategy=here).remote(vae_directory))


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Silence Ray Data's progress bars and plans, because this module reports progress itself."""
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
