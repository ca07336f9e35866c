"""Score a generator by a protocol: on held-out clips or pictures, by every metric that counts."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ray.util import ActorPool

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.pipeline import Curator
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
    reference,
    summarise,
    uncertainties,
)
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.networks.state_dicts import checkpoint_config
from magicdistill.models.paths import local_path
from magicdistill.platform.cluster.ray_cluster import announced_cluster
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import EvaluationConfig
from magicdistill.platform.data.prepare import data_root, tell
from magicdistill.platform.evaluation.contestants import (
    Contestant,
    VideoFolder,
    export_inputs,
    names_of,
)
from magicdistill.platform.evaluation.evaluate_run import chunks
from magicdistill.platform.evaluation.log_scores import track_scores
from magicdistill.platform.evaluation.protocol_evaluator import (
    TRUTH,
    ProtocolEvaluator,
    VideoBatch,
)
from magicdistill.platform.evaluation.score_plots import plot_scores
from magicdistill.platform.evaluation.score_table import ScoreRow, ScoreTable
from magicdistill.platform.inference.variants import Variant
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import ExplainedError, resume_hint
from magicdistill.platform.runs.run_directory import resolve_root

FORMAT = 3
"""Format of the stored batches; raise it when the same key no longer means the same measures."""
CHANGES = ".changes.json"
"""Suffix of the file beside a batch's measures that says what was changed of its videos."""
VIDEOS = "videos"
COLLAPSED = AbsentMetric("the generator gave pixels that are no numbers")


def evaluate_model(recipe: Recipe, ways: Sequence[Variant | Contestant], folder: Path) -> Path:
    """Score models side by side by the recipe's protocol; return the JSON file.

    `folder` keeps the scores and the measured batches, named by their content: an evaluation that
    was stopped continues where it was, and a finished one is only read. Raises FileNotFoundError
    if the teacher, the VAE or an input of the protocol does not exist, and RecipeError for a
    contestant that cannot take part.
    """
    assert recipe.evaluation is not None
    for way in ways:  # a wrong path shows before the work
        if isinstance(way, Variant):
            find_weights(way.weights or "", "model.teacher")
        else:
            way.demand(())
    home = folder / recipe.evaluation.name
    with _opened(recipe, folder / "parts", home / VIDEOS) as evaluation_run:
        table = evaluation_run.score(ways)
    path = table.save(home)
    pictures = plot_scores(home, table)
    print(table.text(), flush=True)
    for picture in pictures:
        logs.say(f"plot   {picture}")
    logs.say(f"videos {home / VIDEOS}")
    logs.say(f"scores {path}")
    track_scores(recipe, path, ways, pictures)
    return path


def export_protocol(recipe: Recipe, folder: str) -> None:
    """Write what others need for videos of a protocol: first frames, prompts and names.

    Raises FileNotFoundError if the VAE or an input of the protocol does not exist.
    """
    place = Path(local_path(folder)).absolute()
    with _opened(recipe, place, place) as evaluation_run:
        evaluation_run.export_inputs(place)
    logs.say(f"inputs {place}")


@contextmanager
def _opened(recipe: Recipe, parts: Path, videos: Path) -> Iterator["EvaluationRun"]:
    """Curate a protocol's inputs; Ray starts when there is work, and ends with the body."""
    vae = find_weights(recipe.model.vae or "", "model.vae")
    with ExitStack() as stack:

        @cache
        def start_ray() -> None:
            stack.enter_context(announced_cluster(recipe.cluster))

        yield EvaluationRun(recipe, _curate(recipe, vae, start_ray), parts, videos, start_ray)


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
        videos: Path,
        start_ray: Callable[[], None],
    ) -> None:
        """Take the clips and the folders of measured batches and of videos.

        Ray starts if some are missing.
        """
        assert recipe.evaluation is not None
        self.recipe, self.clips, self.folder, self.videos = recipe, clips, folder, videos
        self.config: EvaluationConfig = recipe.evaluation
        self.start_ray = start_ray
        index = LatentCache(clips.cache_path).index.to_pylist()
        by_id = {clip.clip_id: clip for clip in clips.clips}
        self.inputs = [by_id[row["clip_id"]] for row in index[: self.config.num_clips]]
        self.rows = chunks(len(self.inputs), self.config.batch_size)
        self.networks = digest_networks(self.config.networks_path, self.config.counted)
        self.names = names_of(self.inputs, self.config.num_samples)

    def score(self, ways: Sequence[Variant | Contestant]) -> ScoreTable:
        """Measure what is missing; return the table of the real clips and of all contestants.

        Raises RecipeError for a contestant that cannot take part.
        """
        for way in ways:
            if not isinstance(way, Variant):
                way.demand([name for names in self.names for name in names])
        found: list[tuple[Variant | Contestant, Measured | None]] = []
        real = None
        if self.config.has_clips:
            real = reference(self._reference(), self._measure_truth)
            found.append((TRUTH, real))
        parts = [self._parts(way) for way in ways]
        self._make([part for each in parts for part in each])
        found += zip(ways, map(self._merged, parts), strict=True)
        absent = absent_metrics(self.config.networks_path)
        rows = tuple(
            self._row(way, measured, real, self._summary(measured, real, absent))
            for way, measured in found
        )
        changes = dict(zip((way.name for way in ways), map(self._changes, parts), strict=True))
        facts = self._facts(ways) | {f"{k}, changed": v for k, v in changes.items() if v}
        return ScoreTable(self.config.name, self.config.columns, rows, facts)

    def export_inputs(self, folder: Path) -> None:
        """Write the first frames, prompts and seeds of all videos."""
        parts = self._parts(VideoFolder("", folder))
        requests = [
            request for _, found in self._on_workers("requests", parts) for request in found
        ]
        export_inputs(folder, requests)

    def _changes(self, parts: Sequence[VideoBatch]) -> str:
        """Return what was changed of a contestant's videos, each kind of it once."""
        paths = [self._path(part).with_suffix(CHANGES) for part in parts]
        found = [line for path in paths if path.exists() for line in json.loads(path.read_text())]
        return "; ".join(f"{count} videos {kind}" for kind, count in Counter(found).items() if kind)

    def _row(
        self,
        way: Variant | Contestant,
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
        unit = "" if isinstance(way, Variant) else "steps"
        return ScoreRow(way.name, _nfe(way, self.recipe.model), metrics, unit=unit, beside=beside)

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

    def _parts(self, way: Variant | Contestant) -> list[VideoBatch]:
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
            for part, batch in self._on_workers("score", missing):
                if any(batch.changes):
                    write_text(self._path(part).with_suffix(CHANGES), json.dumps([*batch.changes]))
                if batch.measured is not None:
                    batch.measured.save(self._path(part))

    def _on_workers(
        self, call: str, parts: Sequence[VideoBatch]
    ) -> Iterator[tuple[VideoBatch, Any]]:
        """Yield each batch with the answer of the actors' call, in order, as it comes."""
        if not parts:
            return
        self.start_ray()
        cluster = self.recipe.cluster
        actor = ProtocolEvaluator.options(num_gpus=cluster.gpus_per_worker)
        count = min(cluster.num_workers, len(parts))
        recipe = self.recipe.model_dump_json()
        pool: Any = ActorPool([actor.remote(recipe) for _ in range(count)])
        tasks = [
            (
                part,
                self.clips.cache_path,
                self.inputs[part.rows.start : part.rows.stop],
                self._files(part),
            )
            for part in parts
        ]
        yield from zip(
            parts,
            pool.map(lambda worker, task: getattr(worker, call).remote(*task), tasks),
            strict=True,
        )

    def _files(self, part: VideoBatch) -> list[Path]:
        """Return the files of a batch's videos; there are none of the real clips."""
        if part.way == TRUTH:
            return []
        names = self.names[part.rows.start : part.rows.stop]
        return [self.videos / part.way.name / f"{own[part.sample]}.mp4" for own in names]

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
        if isinstance(way, Variant):
            made = _facts_of_weights(way)
        else:
            made = way.facts([path.stem for path in self._files(part)])
        made |= {"seed": self.recipe.seed, "sample": part.sample, "num_frames": config.num_frames}
        return {
            "format": FORMAT,
            "vae": digest_weights(find_weights(self.recipe.model.vae or "", "model.vae")),
            "clips": self.clips.version,
            "rows": [part.rows.start, part.rows.stop],
            "real": config.real,
            "fps": config.data.bucket.fps,
            "fvd_frames": config.fvd_frames,
            "networks": self.networks,
        } | (made if way != TRUTH else {})

    def _facts(self, ways: Sequence[Variant | Contestant]) -> dict[str, Any]:
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
        } | {way.name: str(way) for way in ways}


def _facts_of_weights(way: Variant) -> dict[str, Any]:
    weights = way.weights and digest_weights(find_weights(way.weights, "model.teacher"))
    made = {"weights": weights, "sampler": way.sampler.model_dump(mode="json")}
    if way.other is not None:
        made |= {"other": digest_weights(way.other.weights), "levels": way.other.levels}
    return made


def _nfe(way: Variant | Contestant, model: ModelConfig) -> int:
    """Return the number of network evaluations of one video; 0 for real clips."""
    if not isinstance(way, Variant):
        return way.nfe
    if way.weights is None:
        return 0
    path = find_weights(way.weights, "model.teacher")
    backbone, config = checkpoint_config(path, *unsaid(path, model))
    cfg = way.sampler.cfg(embeds=backbone.takes_guidance(config))
    forwards = forwards_per_step(cfg, embeds=False)
    return way.sampler.num_steps * forwards


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
