"""Score a generator by a protocol: on held-out clips or pictures, by every metric that counts."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from einops import rearrange
from ray.util import ActorPool
from torch import Tensor

from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.latents.windows import read_windows
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.data_pipeline.selection.curation_result import CurationResult
from magicdistill.data_pipeline.selection.publishing import NothingAcceptedError
from magicdistill.models.checksums import digest_weights
from magicdistill.models.diffusion.guidance import forwards_per_step
from magicdistill.models.locations import find_weights
from magicdistill.models.methods.build import unsaid
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.metrics.frechet import reference_path
from magicdistill.models.metrics.networks import absent_metrics, digest_networks
from magicdistill.models.metrics.resampling import NUM_HALVES
from magicdistill.models.metrics.results import AbsentMetric, Metric, Uncertainty
from magicdistill.models.metrics.suite import (
    Measured,
    MetricSuite,
    reference,
    summarise,
    uncertainties,
)
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.networks.state_dicts import checkpoint_config
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.cluster.ray_cluster import announced_cluster
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import EvaluationConfig
from magicdistill.platform.data.prepare import data_root, tell
from magicdistill.platform.evaluation.evaluate_run import chunks
from magicdistill.platform.evaluation.log_scores import track_scores
from magicdistill.platform.evaluation.score_plots import plot_scores
from magicdistill.platform.evaluation.score_table import ScoreRow, ScoreTable
from magicdistill.platform.inference.clip_generator import ClipGenerator
from magicdistill.platform.inference.variants import REAL, Variant, variants
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import ExplainedError, resume_hint
from magicdistill.platform.runs.run_directory import resolve_root

FORMAT = 3
"""Format of the stored batches; raise it when the same key no longer means the same measures."""
COLLAPSED = AbsentMetric("the generator gave pixels that are no numbers")
TRUTH = Variant(REAL, None, SamplerConfig())


@dataclass(frozen=True)
class VideoBatch:
    """Videos that one worker generates and measures at once."""

    way: Variant
    rows: range
    """Rows of the latent cache whose first frames are used."""
    sample: int
    """Index of the video among those of the same first frame."""


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)
class ProtocolEvaluator:
    """An actor that generates batches of videos and measures them against the real clips."""

    def __init__(self, recipe_json: str) -> None:
        recipe = Recipe.model_validate_json(recipe_json)
        assert recipe.evaluation is not None
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        self.seed, self.config = recipe.seed, recipe.evaluation
        self.clip_generator = ClipGenerator(recipe.model.model_dump_json())
        networks = self.config.networks_path
        device, window = self.clip_generator.device, self.config.fvd_frames
        self.suite = MetricSuite(networks, device, self.config.counted, window)

    @torch.no_grad()
    def score(self, part: VideoBatch, cache: Any, clips: Sequence[ClipRow]) -> Measured | None:
        """Measure a batch made of the rows of `clips`; return None if a pixel is not finite."""
        real = pixels = self._real(cache, part.rows, clips)
        if part.way.weights is not None:
            pixels, _, _ = self.clip_generator.make(
                part.way,
                cache,
                part.rows,
                self.seed,
                sample_index=part.sample,
                num_frames=self.config.num_frames,
            )
        if not pixels.isfinite().all():
            return None
        return self.suite.measure(pixels, real, self.config.data.bucket.fps)

    def _real(self, cache: Any, rows: range, clips: Sequence[ClipRow]) -> Tensor:
        """Return the real clips or pictures (b 3 t y x)."""
        if self.config.real == "decoded":
            return self.clip_generator.make(TRUTH, cache, rows, self.seed)[0]
        data = self.config.data
        frames = np.concatenate(list(read_windows(clips, data.bucket, 1, data.decoder)))
        pixels = torch.from_numpy(frames).to(self.clip_generator.device).float() / 127.5 - 1
        return rearrange(pixels, "b t y x c -> b c t y x")


def evaluate_model(recipe: Recipe, student: Path, folder: Path) -> Path:
    """Score weights beside their teacher by the recipe's protocol; return the JSON file.

    `folder` keeps the scores and the measured batches, named by their content: an evaluation that
    was stopped continues where it was, and a finished one is only read. Raises FileNotFoundError
    if the teacher, the VAE or an input of the protocol does not exist.
    """
    assert recipe.evaluation is not None
    ways = variants(recipe, student)
    for way in ways:
        find_weights(way.weights or "", "model.teacher")  # a wrong path shows before the work
    vae = find_weights(recipe.model.vae or "", "model.vae")
    with ExitStack() as stack:

        @cache
        def start_ray() -> None:
            stack.enter_context(announced_cluster(recipe.cluster))

        clips = _curate(recipe, vae, start_ray)
        evaluation_run = EvaluationRun(recipe, clips, folder / "parts", start_ray)
        table = evaluation_run.score(ways)
    home = folder / recipe.evaluation.name
    path = table.save(home)
    pictures = plot_scores(home, table)
    print(table.text(), flush=True)
    for picture in pictures:
        logs.say(f"plot   {picture}")
    logs.say(f"scores {path}")
    track_scores(recipe, path, ways, pictures)
    return path


def _curate(recipe: Recipe, vae: Path, start_ray: Callable[[], None]) -> CurationResult:
    """Curate the inputs of a protocol; start Ray only if there is something to do."""
    assert recipe.evaluation is not None
    root = data_root(recipe, resolve_root(recipe.runs))
    curator = Curator([recipe.evaluation.data], root, before_work=start_ray)
    with resume_hint("the same command"):
        curator.ingest()
        curator.score()
        curator.caption()
        try:
            (clips,) = curator.encode(vae)
        except NothingAcceptedError as error:
            raise ExplainedError(f"protocol {recipe.evaluation.name}: {error}") from None
    tell(recipe.evaluation.name, clips)
    return clips


class EvaluationRun:
    """The inputs of a protocol and the measured batches; scores any variants on them."""

    def __init__(
        self,
        recipe: Recipe,
        clips: CurationResult,
        folder: Path,
        start_ray: Callable[[], None],
    ) -> None:
        """Take the clips and the folder of measured batches. Ray starts if some are missing."""
        assert recipe.evaluation is not None
        self.recipe, self.clips, self.folder = recipe, clips, folder
        self.config: EvaluationConfig = recipe.evaluation
        self.start_ray = start_ray
        index = LatentCache(clips.cache_path).index.to_pylist()
        by_id = {clip.clip_id: clip for clip in clips.clips}
        self.inputs = [by_id[row["clip_id"]] for row in index[: self.config.num_clips]]
        self.rows = chunks(len(self.inputs), self.config.batch_size)
        self.networks = digest_networks(self.config.networks_path, self.config.counted)

    def score(self, ways: Sequence[Variant]) -> ScoreTable:
        """Measure what is missing; return the table of the real clips and of all variants."""
        found: dict[Variant, Measured | None] = {}
        if self.config.has_clips:
            found[TRUTH] = reference(self._reference(), self._measure_truth)
        parts = {way: self._parts(way) for way in ways}
        self._make([part for each in parts.values() for part in each])
        found |= {way: self._merged(each) for way, each in parts.items()}
        real, absent = found.get(TRUTH), absent_metrics(self.config.networks_path)
        rows = (
            self._row(way, measured, real, self._summary(measured, real, absent))
            for way, measured in found.items()
        )
        return ScoreTable(self.config.name, self.config.columns, tuple(rows), self._facts(ways))

    def _row(
        self,
        way: Variant,
        found: Measured | None,
        real: Measured | None,
        metrics: Mapping[str, Metric],
    ) -> ScoreRow:
        beside: dict[str, Uncertainty] = {}
        if found is not None:
            beside = uncertainties(
                found,
                real,
                metrics,
                self.config.counted,
                num_inputs=len(self.inputs),
                counting=self._counting,
                seed=self.recipe.seed,
            )
        return ScoreRow(way.name, _nfe(way, self.recipe.model), metrics, beside=beside)

    def _summary(
        self, found: Measured | None, real: Measured | None, absent: Mapping[str, AbsentMetric]
    ) -> Mapping[str, Metric]:
        if found is None:
            return dict.fromkeys(METRICS.names(), COLLAPSED)
        return summarise(found, real, absent, self.config.counted, self._counting)

    @cached_property
    def _counting(self) -> dict[str, np.ndarray]:
        """Which videos count for a dimension, by the sources' lists; empty if none has one."""
        counts: dict[str, frozenset[str]] = {}
        for source in self.config.data.sources:
            counts |= source.counted_dimensions()
        if not counts:
            return {}

        def counts_for(metric: str, name: str) -> bool:
            return name not in counts or metric in counts[name]

        names = [
            clip.video.entry for rows in self.rows for clip in self.inputs[rows.start : rows.stop]
        ]
        return {
            metric: np.tile([counts_for(metric, name) for name in names], self.config.num_samples)
            for metric in METRICS.names()
            if any(metric in dimensions for dimensions in counts.values())
        }

    def _parts(self, way: Variant) -> list[VideoBatch]:
        return [
            VideoBatch(way, rows, sample)
            for sample in range(self.config.num_samples)
            for rows in self.rows
        ]

    def _measure_truth(self) -> Measured:
        parts = [VideoBatch(TRUTH, rows, 0) for rows in self.rows]
        self._make(parts)
        merged = self._merged(parts)
        assert merged is not None, "clips are made of bytes, which are numbers"
        return merged

    def _merged(self, parts: Iterable[VideoBatch]) -> Measured | None:
        """Merge the batches; return None if one is missing, because its generator has collapsed."""
        paths = [self._path(part) for part in parts]
        if not all(path.exists() for path in paths):
            return None
        return Measured.merged(map(Measured.load, paths))

    def _make(self, parts: Sequence[VideoBatch]) -> None:
        """Measure the batches that are missing and store them."""
        missing = [part for part in parts if not self._path(part).exists()]
        logs.say(f"parts: {len(parts) - len(missing)} kept, {len(missing)} to measure")
        with resume_hint("the same command"):
            for part, measured in self._measured(missing):
                if measured is not None:
                    measured.save(self._path(part))

    def _measured(
        self, parts: Sequence[VideoBatch]
    ) -> Iterator[tuple[VideoBatch, Measured | None]]:
        """Yield each batch with its measures, in order, as they are finished."""
        if not parts:
            return
        self.start_ray()
        cluster = self.recipe.cluster
        actor = ProtocolEvaluator.options(num_gpus=cluster.gpus_per_worker)
        count = min(cluster.num_workers, len(parts))
        recipe = self.recipe.model_dump_json()
        pool: Any = ActorPool([actor.remote(recipe) for _ in range(count)])
        tasks = [
            (part, self.clips.cache_path, self.inputs[part.rows.start : part.rows.stop])
            for part in parts
        ]
        yield from zip(
            parts, pool.map(lambda worker, task: worker.score.remote(*task), tasks), strict=True
        )

    def _path(self, part: VideoBatch) -> Path:
        return self.folder / f"{_digest(self._facts_of(part))[:32]}.npz"

    def _reference(self) -> Path:
        """Return the file of the real clips' measures, which evaluations of all models share."""
        facts = [self._facts_of(VideoBatch(TRUTH, rows, 0)) for rows in self.rows]
        folder = resolve_root(self.recipe.runs) / "evaluations" / "references"
        return reference_path(folder, _digest(facts), self.networks)

    def _facts_of(self, part: VideoBatch) -> dict[str, Any]:
        """Return everything that decides the measures of a batch."""
        config, way = self.config, part.way
        weights = way.weights and digest_weights(find_weights(way.weights, "model.teacher"))
        made = {
            "weights": weights,
            "sampler": way.sampler.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "sample": part.sample,
            "num_frames": config.num_frames,
        }
        if way.other is not None:
            made |= {"other": digest_weights(way.other.weights), "levels": way.other.levels}
        return {
            "format": FORMAT,
            "vae": digest_weights(find_weights(self.recipe.model.vae or "", "model.vae")),
            "clips": self.clips.version,
            "rows": [part.rows.start, part.rows.stop],
            "real": config.real,
            "fps": config.data.bucket.fps,
            "fvd_frames": config.fvd_frames,
            "networks": self.networks,
        } | (made if weights else {})

    def _facts(self, ways: Sequence[Variant]) -> dict[str, Any]:
        """Return, for readers of the table, what the numbers depend on."""
        config, bucket = self.config, self.config.data.bucket
        frames = config.num_frames or bucket.num_frames
        inputs = f"{len(self.inputs)} of {config.num_clips}"
        return {
            "recipe": self.recipe.name,
            "inputs": f"{inputs} {'clips' if config.has_clips else 'pictures'}",
            "videos of each": config.num_samples,
            "shape": f"{frames} frames of {bucket.height}x{bucket.width} at {bucket.fps:g} fps",
            "compared with": config.real if config.has_clips else "no clips",
            "data version": self.clips.version,
            "seed": self.recipe.seed,
            "FVD and KVD of": f"windows of {w} frames"
            if (w := config.fvd_frames)
            else "whole clips",
            "in brackets": f"95 % intervals over {len(self.inputs)} inputs",
            "halves": f"{len(self.inputs) // 2} clips a side, disjoint; mean of {NUM_HALVES} draws",
        } | {
            way.name: f"{way.weights}{f' and {way.other}' if way.other else ''}, {way.sampler}"
            for way in ways
        }


def _nfe(way: Variant, model: ModelConfig) -> int:
    """Return the number of network evaluations of one video; 0 for real clips."""
    if way.weights is None:
        return 0
    path = find_weights(way.weights, "model.teacher")
    backbone, config = checkpoint_config(path, *unsaid(path, model))
    cfg = way.sampler.cfg(embeds=backbone.takes_guidance(config))
    forwards = forwards_per_step(cfg, embeds=False)
    return way.sampler.num_steps * forwards


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
