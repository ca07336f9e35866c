"""Curate: sources -> scored clips -> accepted clips -> latent cache, through Ray Data."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from magicdistill.data_pipeline.actor_pool import run_here, run_in_actors
from magicdistill.data_pipeline.captioning.costs import CaptionCost
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.arrow import in_blocks, noted
from magicdistill.data_pipeline.io.kept_tables import TABLES
from magicdistill.data_pipeline.io.query import Database, text
from magicdistill.data_pipeline.io.storage import AnyPath, local_folder, place
from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.data_pipeline.latents.cache import read_index
from magicdistill.data_pipeline.ledger.captions import cost_of_all
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.progress import Bars, Progress
from magicdistill.data_pipeline.rows import (
    ClipRow,
    clips_from_table,
    clips_to_table,
    digest,
    split_temporary,
)
from magicdistill.data_pipeline.selection.curation_result import (
    CurationResult,
    Selection,
    StageTiming,
)
from magicdistill.data_pipeline.selection.curation_state import CurationState, agreeing
from magicdistill.data_pipeline.selection.publishing import (
    WantedRows,
    publish_selection,
    write_missing_prompts,
)
from magicdistill.data_pipeline.sources.listing import SourceLister
from magicdistill.data_pipeline.stages.caption import BOX, Caption, CaptionJob, Patience
from magicdistill.data_pipeline.stages.embed import (
    PROMPT_SCHEMA,
    Embed,
    EmbedJob,
    prompts_fingerprint,
)
from magicdistill.data_pipeline.stages.embed_first_frames import (
    EmbedFirstFrames,
    EmbedFirstFramesJob,
)
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob, fingerprint_of
from magicdistill.data_pipeline.stages.run_scorers import AddScores, gpus_for
from magicdistill.data_pipeline.stages.score import Score

logger = logging.getLogger(__name__)

MERGE_EVERY = 64
"""Parts that a run commits to the ledger before it looks whether there are many to merge."""


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
    curator.caption()
    return curator.encode(vae_directory)


def select_clips(
    config: DataConfig, root: AnyPath | str, progress: Progress | None = None
) -> list[ClipRow]:
    """Score and decide as `curate` does, and return the accepted clips without encoding them.

    Captions are neither written nor asked for.
    """
    curator = Curator([config.model_copy(update={"captions": None})], root, progress)
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
        self._db = Database()
        self._ledger = Ledger(self._root / "ledger", self._db)
        self._temporary = Ledger(self._db.folder / "temporary", self._db)
        self._num_commits = 0
        self._caption_costs: defaultdict[str, CaptionCost] = defaultdict(CaptionCost)
        takedowns = Takedowns.load(self._root / "ledger")
        here = local_folder(self._root)
        clips = here / "clips"
        self._states = [
            CurationState(
                *(config, self._db, self._ledger, SourceLister(config.sources, clips), takedowns),
                kept=here / TABLES,
            )
            for config in configs
        ]

    def ingest(self) -> None:
        """Commit a failed row for every video that the listing knows to be unusable."""
        for state in self._states:
            state.commit_faults()

    def score(self) -> None:
        """Find and score the clips of all videos."""
        for group in agreeing(self._states, ("measures", "decoder")):
            self._score_missing(group)
        for state in self._states:
            self._add_missing_scores(state)

    def caption(self) -> None:
        """Write the captions that otherwise accepted clips lack, where configs ask for it.

        Raises:
            WriterError: if the writer's server does not answer, or refuses.
        """
        states = [state for state in self._states if state.config.captions]
        num_written = len(states)
        while num_written:  # if a caption is rejected, a copy of its clip may be accepted instead
            self._judge()
            num_written = sum(map(self._write_captions, states))

    def caption_costs(self) -> list[tuple[CaptionCost, CaptionCost] | None]:
        """Return what captions cost in this run and in all runs together, for each config."""
        return [
            None
            if (version := state.caption_version) is None
            else (
                self._caption_costs.get(version, CaptionCost()),
                cost_of_all(self._ledger, version),
            )
            for state in self._states
        ]

    def decide(self) -> list[Selection]:
        """Decide on all scored clips, write the decisions, and merge small parts of the ledger."""
        self._judge()
        return self._select()

    def encode(self, vae_directory: Path) -> list[CurationResult]:
        """Encode the accepted clips and publish a version of the cache for each config.

        Raises:
            NothingAcceptedError: if no clip of a config is accepted.
        """
        fingerprint = run_here(fingerprint_of, vae_directory.absolute())
        cache = self._root / "latents"
        wanted: list[WantedRows] = []
        num_failures = None
        while num_failures != 0:  # if a clip fails, a copy of it may be accepted instead
            self._judge()
            wanted = [
                WantedRows(state.clips, state.config, fingerprint, state.new_file("wanted"))
                for state in self._states
            ]
            num_failures = 0
            for group in agreeing(self._states, AGREED_TO_ENCODE):
                job = EncodeJob(group[0].config, vae_directory.absolute(), fingerprint, cache)
                rows = [wanted[self._states.index(state)] for state in group]
                num_failures += self._encode_missing(job, group, rows)
            if not num_failures:
                for state, rows in zip(self._states, wanted, strict=True):
                    num_failures += self._embed_first_frames(state, rows, cache)
        for state in self._states:
            self._embed_missing(state, cache)
        selections = self._select()
        return [
            publish_selection(selection, rows, cache)
            for selection, rows in zip(selections, wanted, strict=True)
        ]

    def _judge(self) -> None:
        """Decide on all clips, last config first: what it accepts is held out from the others."""
        held_out: list[CurationState] = []
        for state in reversed(self._states):
            state.judge(self._temporary, held_out)
            held_out.append(state)

    def _select(self) -> list[Selection]:
        """Write the decisions and return them; say what they are made without."""
        selections = [state.select() for state in self._states]
        for number, state in enumerate(self._states, 1):
            for kind, count in state.num_incomparable(self._states[number:]).items():
                logger.warning(
                    "%d held-out clips were not seen by the same %s: near copies of them stay "
                    "among the other clips; take it of the held-out clips too",
                    count,
                    kind,
                )
        for selection in selections:
            for reason, count in selection.absent.items():
                logger.warning("%s: %d clips are judged without that score", reason, count)
            name = digest(selection.config.model_dump_json())
            judged = selection.judged
            self._ledger.write_decisions(name, judged.stored(), judged.made_as)
        self._merge_parts()
        return selections

    def _score_missing(self, group: Sequence[CurationState]) -> None:
        """Find the clips of videos that have none; commit all rows except temporary failures."""
        config = group[0].config
        count = sum(state.missing(group[:number]) for number, state in enumerate(group))
        videos = chain.from_iterable(state.missing_videos() for state in group)
        blocks = in_blocks(videos, config.videos_per_block)
        with self._timed("score", count, "videos") as advance:
            for clips in self._through(blocks, Score, (config.measures, config.decoder), config):
                self._commit(clips)
                advance(len(clips["video_id"].unique()))

    def _add_missing_scores(self, state: CurationState) -> None:
        """Commit the scores that clips lack; temporary failures are not committed.

        Cheap scorers see all clips; costly ones then see only clips that are not yet rejected.
        """
        config = state.config
        self._ledger.describe(config.measures.scorers)
        for costly in (False, True):
            scorers = [s for s in config.measures.scorers if costly == s.COSTLY]
            if not scorers:
                continue
            clips = state.lacking(scorers, hopeful=costly)
            blocks = in_blocks(clips.tables(), config.videos_per_block)
            gpus = gpus_for(scorers, config.measures)
            arguments = (scorers, config.decoder, gpus > 0)
            with self._timed("measure", clips.count(), "clips") as advance:
                for rows in self._through(blocks, AddScores, arguments, config, gpus):
                    self._commit(rows)
                    advance(len(rows))

    def _write_captions(self, state: CurationState) -> int:
        """Commit captions, except temporary failures; return the number of clips asked about."""
        clips, config = state.uncaptioned(), state.config
        if clips is None:
            return 0
        job, count = CaptionJob.prepare(config), clips.count()
        self._ledger.describe([job.scorer])
        patience, num_gpus = Patience(job), job.scorer.captions.writer.num_gpus
        blocks = in_blocks(clips.tables(also=[BOX]), config.videos_per_block)
        with self._timed("caption", count, "clips") as advance:
            for rows in self._through(blocks, Caption, (job,), config, num_gpus):
                self._commit(rows)
                paid = CaptionCost.of(rows["scores"].to_pylist(maps_as_pydicts="strict"))
                self._caption_costs[job.version] += paid
                patience.watch(rows["failure"].to_pylist())
                advance(len(rows))
        return count

    def _encode_missing(
        self, job: EncodeJob, group: Sequence[CurationState], wanted: Sequence[WantedRows]
    ) -> int:
        """Encode accepted clips of which the cache lacks rows; return how many of them failed.

        Temporary failures are not committed.
        """
        config, cache = job.config, read_index(job.cache_root)
        files: list[Path] = []
        for state, rows in zip(group, wanted, strict=True):
            files.append(state.new_file("to-encode"))
            rows.write_missing(cache, files[-1], files[:-1])
        count = self._db.value(f"SELECT count(*) FROM {self._db.files(files)}")
        if not count:
            return 0
        size = config.encoding.rows_per_shard // max(rows.most_per_clip() for rows in wanted)
        clips = in_blocks(self._by_shape(group, files), max(1, size))
        num_gpus = config.encoding.num_gpus_per_actor
        with self._timed("encode", count, "clips") as advance:
            return self._reported(clips, "encode", Encode, job, config, num_gpus, advance)

    def _embed_first_frames(
        self, state: CurationState, wanted: WantedRows, cache_root: AnyPath
    ) -> int:
        """Embed first frames, with captions, that the cache lacks; return how many clips failed."""
        config, prompts = state.config, state.config.prompts
        if prompts is None or prompts.image_token_stride is None:
            return 0
        missing = state.new_file("to-embed")
        wanted.write_without_text(cache_root, missing)
        count = self._db.value(f"SELECT count(*) FROM {self._db.files([missing])}")
        if not count:
            return 0
        job = EmbedFirstFramesJob(config, prompts_fingerprint(prompts), cache_root)
        size = config.encoding.rows_per_shard // wanted.most_per_clip()
        clips = in_blocks(self._by_shape([state], [missing]), max(1, size))
        num_gpus = prompts.num_gpus_per_actor
        with self._timed("embed", count, "clips") as advance:
            return self._reported(clips, "embed", EmbedFirstFrames, job, config, num_gpus, advance)

    def _reported(
        self,
        clips: Iterator[pa.Table],
        name: str,
        stage: type,
        job: Any,
        config: DataConfig,
        num_gpus: float,
        advance: Callable[[int], None],
    ) -> int:
        """Run a stage that reports on clips; commit those that failed and return how many did."""
        sent: dict[str, pa.Table] = {}
        num_failures = 0
        for table in self._through(noted(clips, sent), stage, (job,), config, num_gpus):
            lost: list[ClipRow] = []
            for report in table.to_pylist():
                row = sent.pop(report["clip_id"])
                if report["failure"]:
                    (clip,) = clips_from_table(row)
                    lost.append(replace(clip, failure=f"{name}: {report['failure']}"))
            self._commit(clips_to_table(lost))
            num_failures += len(lost)
            advance(len(table))
        return num_failures

    def _by_shape(
        self, group: Sequence[CurationState], files: Sequence[Path]
    ) -> Iterator[pa.Table]:
        """Yield the clips whose ids are in each state's file, by shape, because a batch has one."""
        shapes = {shape for state in group for shape in state.clips.count_by("bucket")}
        for shape in sorted(shapes):
            for state, file in zip(group, files, strict=True):
                ids = f"SELECT clip_id FROM {self._db.files([file])}"
                yield from state.clips.tables(f"bucket = {text(shape)} AND clip_id IN ({ids})")

    def _embed_missing(self, state: CurationState, cache_root: AnyPath) -> None:
        """Embed those captions of accepted clips that the cache lacks, and the null prompt."""
        prompts = state.config.prompts
        if prompts is None or prompts.image_token_stride is not None:
            return
        job = EmbedJob(prompts, prompts_fingerprint(prompts), cache_root)
        missing = state.new_file("to-embed")
        write_missing_prompts(state.clips, job, missing)
        stored = self._db.files([missing])
        batches = self._db.batches(f"FROM {stored} ORDER BY prompt", prompts.prompts_per_shard)
        tables = (pa.Table.from_batches([batch]).cast(PROMPT_SCHEMA) for batch in batches)
        blocks = in_blocks(tables, prompts.prompts_per_shard)
        count = self._db.value(f"SELECT count(*) FROM {stored}")
        num_gpus = prompts.num_gpus_per_actor
        with self._timed("embed", count, "prompts") as advance:
            for embedded in self._through(blocks, Embed, (job,), state.config, num_gpus):
                advance(len(embedded))

    def _commit(self, clips: pa.Table) -> None:
        """Commit rows to the ledger; temporary failures are only kept for this run's decisions."""
        passing, lasting = split_temporary(clips)
        self._temporary.commit(passing)
        self._ledger.commit(lasting)
        self._num_commits += 1
        if self._num_commits % MERGE_EVERY == 0:
            self._merge_parts()

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
        blocks: Iterator[pa.Table],
        stage: type,
        arguments: tuple[Any, ...],
        config: DataConfig,
        num_gpus: float = 0.0,
    ) -> Iterator[pa.Table]:
        """Run a stage over blocks as `run_in_actors` does."""
        pool = config.num_actors, num_gpus, self._before_work
        return run_in_actors(blocks, stage, arguments, *pool)
