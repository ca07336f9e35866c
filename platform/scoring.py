"""Scoring a generator on held-out clips by every metric whose network is there."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util import ActorPool

from magicdistill.data_pipeline.cache import LatentCache
from magicdistill.data_pipeline.curation import CurationResult
from magicdistill.data_pipeline.pipeline import curate_together
from magicdistill.models.metrics.results import AbsentMetric, Metric
from magicdistill.models.metrics.suite import METRICS, Measured, MetricSuite, summarise
from magicdistill.models.metrics.weight_files import absent_metrics, digest_networks
from magicdistill.models.networks.weights import digest_weights, find_weights
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform import logs
from magicdistill.platform.evaluation import REAL, ClipMaker, Variant, chunks, variants
from magicdistill.platform.experiment import data_root
from magicdistill.platform.job import announced_cluster, resume_hint
from magicdistill.platform.recipe import Recipe
from magicdistill.platform.run_directory import resolve_root, write_text
from magicdistill.platform.scores_tracking import track_scores

Table = Mapping[str, Mapping[str, Metric]]
"""Metrics by way of generating and name."""
FORMAT = 1
"""Of parts: raised where equal keys no longer mean equal measures."""
COLLAPSED = AbsentMetric("the generator gave pixels that are no numbers")
MODEL, RECIPE = "model", "recipe.yaml"


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)
class Scorer:
    """Generates chunks of held-out clips and measures them beside the real ones."""

    def __init__(self, model_json: str, threads: int, weights: Path | None) -> None:
        torch.set_num_threads(threads)
        self.maker = ClipMaker(model_json)
        self.suite = MetricSuite(weights, self.maker.device)

    @torch.no_grad()
    def score(
        self, way: Variant, cache: Any, rows: range, seed: int, fps: float
    ) -> Measured | None:
        """Measure one way on rows of the cache; None where its pixels are no numbers."""
        pixels, _, _ = self.maker.make(way, cache, rows, seed)
        if not pixels.isfinite().all():
            return None
        real, _, _ = self.maker.make(Variant(REAL, None, way.sampler), cache, rows, seed)
        return self.suite.measure(pixels, real, fps)


def evaluate_model(recipe: Recipe, model: str, weights: Path | None) -> Path:
    """Score a model beside its teacher on the recipe's held-out clips; return the JSON file.

    `model` is a run, or weights. Parts are kept by their content: a stopped evaluation goes on
    where it was, and one that is finished is only read. Raises FileNotFoundError for no weights.
    """
    student, folder = _find_model(recipe, model)
    ways = [Variant(REAL, None, SamplerConfig()), *variants(recipe, student)]
    with resume_hint("the same command"), announced_cluster(recipe.cluster):
        assert recipe.evaluation is not None
        vae = find_weights(recipe.model.vae or "", "model.vae")
        root = data_root(recipe, resolve_root(recipe.runs))
        (clips,) = curate_together([recipe.evaluation.data], vae, root)
        table = score_ways(recipe, ways, clips, folder / "parts", weights)
    path = folder / "scores.json"
    write_text(path, json.dumps(_as_json(recipe, ways, table), indent=2))
    for line in format_table(table).splitlines():
        logs.say(line)
    logs.say(f"scores {path}")
    track_scores(recipe, path)
    return path


def score_ways(
    recipe: Recipe,
    ways: Sequence[Variant],
    clips: CurationResult,
    folder: Path,
    weights: Path | None,
) -> Table:
    """Return the metrics of each way; the first way, the real clips, is what they compare with."""
    assert recipe.evaluation is not None
    fps = float(recipe.evaluation.data.bucket.fps)
    rows = chunks(min(recipe.evaluation.num_clips, len(LatentCache(clips.cache_path))))
    networks = digest_networks(weights)
    paths = {
        (way.name, chunk): folder / f"{_key(recipe, way, clips, chunk, networks)}.npz"
        for way in ways
        for chunk in rows
    }
    missing = [
        (paths[way.name, chunk], (way, clips.cache_path, chunk, recipe.seed, fps))
        for way in ways
        for chunk in rows
        if not paths[way.name, chunk].exists()
    ]
    logs.say(f"parts: {len(paths) - len(missing)} kept, {len(missing)} to measure")
    collapsed = set()
    for path, way, part in _measure(recipe, missing, weights):
        if part is None:
            collapsed.add(way)
        else:
            part.save(path)
    absent = absent_metrics(weights)
    measured = {
        way.name: Measured.merged(Measured.load(paths[way.name, chunk]) for chunk in rows)
        for way in ways
        if way.name not in collapsed
    }
    return {
        way.name: summarise(measured[way.name], measured[REAL], absent)
        if way.name in measured
        else dict.fromkeys(METRICS, COLLAPSED)
        for way in ways
    }


def format_table(table: Table) -> str:
    """Return the metrics that some way has as text, and the reasons of the others."""
    shown = [m for m in METRICS if any(isinstance(row[m], float) for row in table.values())]
    head = f"{'':14}" + "".join(f"{name.replace('_', ' '):>24}" for name in shown)
    lines = [head]
    for way, row in table.items():
        cells = (f"{v:.4f}" if isinstance(v := row[name], float) else "absent" for name in shown)
        lines.append(f"{way:14}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join([*lines, *(f"absent {line}" for line in _reasons(table))])


def _reasons(table: Table) -> list[str]:
    """Return one line for each metric and reason, with the ways where not all have it."""
    ways: dict[tuple[str, str], list[str]] = {}
    for way, row in table.items():
        for name, metric in row.items():
            if isinstance(metric, AbsentMetric):
                ways.setdefault((name, metric.reason), []).append(way)
    notes = {key: "" if len(w) == len(table) else f" ({', '.join(w)})" for key, w in ways.items()}
    return [f"{name}{note}: {reason}" for (name, reason), note in notes.items()]


def _measure(
    recipe: Recipe, missing: Sequence[tuple[Path, tuple[Any, ...]]], weights: Path | None
) -> Iterator[tuple[Path, str, Measured | None]]:
    """Yield the parts as they are made, in order."""
    if not missing:
        return
    cluster = recipe.cluster
    actor = Scorer.options(num_gpus=cluster.gpus_per_worker)
    arguments = (recipe.model.model_dump_json(), cluster.threads_per_worker, weights)
    count = min(cluster.num_workers, len(missing))
    pool: Any = ActorPool([actor.remote(*arguments) for _ in range(count)])
    tasks = [task for _, task in missing]
    parts = pool.map(lambda worker, task: worker.score.remote(*task), tasks)
    for (path, (way, *_)), part in zip(missing, parts, strict=True):
        yield path, way.name, part


def _key(recipe: Recipe, way: Variant, clips: CurationResult, rows: range, networks: str) -> str:
    """Return a digest of everything that decides a part."""
    weights = way.weights and digest_weights(find_weights(way.weights, "model.teacher"))
    assert recipe.model.vae is not None and recipe.evaluation is not None
    facts = {
        "format": FORMAT,
        "weights": weights,
        "sampler": way.sampler.model_dump(mode="json") if weights else None,
        "vae": digest_weights(find_weights(recipe.model.vae, "model.vae")),
        "clips": clips.version,
        "rows": [rows.start, rows.stop],
        "fps": recipe.evaluation.data.bucket.fps,
        "seed": recipe.seed if weights else None,
        "networks": networks,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _find_model(recipe: Recipe, model: str) -> tuple[Path, Path]:
    """Return the weights and the folder of their scores."""
    runs = resolve_root(recipe.runs)
    for run in (Path(model).expanduser(), runs / model):
        if (run / RECIPE).is_file():
            return find_weights(str(run.resolve() / MODEL), "--model"), run.resolve() / "evaluation"
    weights = find_weights(model, "--model")
    return weights, runs / "evaluations" / f"{recipe.name}-{digest_weights(weights)[:12]}"


def _as_json(recipe: Recipe, ways: Sequence[Variant], table: Table) -> dict[str, Any]:
    assert recipe.evaluation is not None
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "num_clips": recipe.evaluation.num_clips,
        "ways": [
            {
                "name": way.name,
                "weights": way.weights,
                "sampler": way.sampler.model_dump(mode="json") if way.weights else None,
                "metrics": {k: v for k, v in table[way.name].items() if isinstance(v, float)},
                "absent": {
                    k: v.reason for k, v in table[way.name].items() if isinstance(v, AbsentMetric)
                },
            }
            for way in ways
        ],
    }
