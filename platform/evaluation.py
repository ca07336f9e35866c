"""Judging a generator on held-out clips, beside its teacher."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from magicdistill.data_pipeline.cache import LatentCache
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.proxies import ProxyVideoFeatures, motion
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.models.networks.weights import find_weights
from magicdistill.models.objectives.build import vae
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.generation import generate, held_out
from magicdistill.platform.pictures import contact_sheet, side_by_side
from magicdistill.platform.recipe import Recipe
from magicdistill.platform.run_directory import RunDirectory, write_text

CHUNK = 16
REAL = "real"


@dataclass(frozen=True)
class Variant:
    """A way to generate: weights and a sampler; no weights are the real clips themselves."""

    name: str
    weights: str | None
    sampler: SamplerConfig


@dataclass(frozen=True)
class Scores:
    """One line of the table."""

    variant: str
    sampler: str
    nfe: int
    """Network evaluations for a clip."""
    seconds_per_clip: float
    """Network time on one worker."""
    proxy_frechet_distance: float
    """To the real clips, in random-network features of decoded pixels."""
    dynamic_degree_proxy: float
    """Mean frame difference over that of the real clips."""


@dataclass(frozen=True)
class Part:
    """What came of one chunk of clips."""

    features: Tensor
    motion: Tensor
    pixels: Tensor
    seconds: float


def variants(recipe: Recipe, student: Path) -> list[Variant]:
    """Return teacher with many steps, teacher with few Euler steps, and the student."""
    assert recipe.evaluation is not None
    many = recipe.evaluation.teacher
    found = [Variant("teacher", recipe.model.teacher, many)]
    few: SamplerConfig | None = getattr(recipe.method, "sampler", None)
    if few is None:
        return [Variant("teacher", str(student), many)]
    names = dict.fromkeys(("euler", few.name))
    found += [
        Variant(name, recipe.model.teacher, few.model_copy(update={"name": name})) for name in names
    ]
    return [*found, Variant("student", str(student), few)]


@ray.remote(num_cpus=1)
class Evaluator:
    """Generates, decodes and measures chunks of held-out clips."""

    def __init__(self, recipe_json: str, cache: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.recipe = Recipe.model_validate_json(recipe_json)
        self.cache = LatentCache(cache)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vae = vae(self.recipe.model).to(self.device)
        self.features = ProxyVideoFeatures().to(self.device)
        self.models: dict[str, VelocityModel] = {}

    @torch.no_grad()
    def run(self, variant: Variant, rows: range) -> Part:
        """Measure one variant on rows of the cache."""
        batch = held_out(self.cache, rows, self.device)
        latents, seconds = batch.x0, 0.0
        if variant.weights is not None:
            model = self._model(variant.weights)
            assert batch.conditions is not None
            start_s = time.monotonic()
            latents = generate(
                model,
                variant.sampler,
                batch.conditions,
                batch.x0.shape[1:],
                seed=self.recipe.seed,
                positions=rows,
            )
            seconds = time.monotonic() - start_s
        pixels = self.vae.decode(latents)
        return Part(self.features(pixels).cpu(), motion(pixels).cpu(), pixels.cpu(), seconds)

    def _model(self, weights: str) -> VelocityModel:
        if weights not in self.models:
            self.models[weights] = (
                VelocityModel(load_transformer(find_weights(weights, "model.teacher")))
                .to(self.device)
                .eval()
            )
        return self.models[weights]


def evaluate(run: RunDirectory, cache: Path) -> list[Scores]:
    """Score the run's generator; write table, contact sheet and video; return the table."""
    recipe = run.recipe()
    assert recipe.evaluation is not None
    ways = variants(recipe, run.path / "model")
    real = Variant(REAL, None, recipe.evaluation.teacher)
    parts = _measure(recipe, cache, [real, *ways])
    truth = parts[REAL]
    table = [_score(way, parts[way.name], truth) for way in ways]
    shown = {
        name: torch.cat([p.pixels for p in found])[: recipe.evaluation.num_shown]
        for name, found in parts.items()
    }
    contact_sheet(run.samples / "comparison.png", shown)
    side_by_side(run.samples / "comparison.mp4", shown, fps=recipe.evaluation.data.bucket.fps)
    write_text(run.path / "scores.json", json.dumps([asdict(row) for row in table], indent=2))
    return table


def _measure(recipe: Recipe, cache: Path, ways: list[Variant]) -> dict[str, list[Part]]:
    assert recipe.evaluation is not None
    count = min(recipe.evaluation.num_clips, len(LatentCache(cache)))
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    cluster = recipe.cluster
    actor = Evaluator.options(num_gpus=cluster.gpus_per_worker)
    arguments = (recipe.model_dump_json(), cache, cluster.threads_per_worker)
    pool = ActorPool([actor.remote(*arguments) for _ in range(cluster.num_workers)])
    tasks = [(way, rows) for way in ways for rows in chunks]
    results: list[Any] = list(pool.map(lambda worker, task: worker.run.remote(*task), tasks))
    return {
        way.name: [part for (owner, _), part in zip(tasks, results, strict=True) if owner is way]
        for way in ways
    }


def _score(way: Variant, parts: list[Part], truth: list[Part]) -> Scores:
    features, reference = (
        np.asarray(torch.cat([part.features for part in found])) for found in (parts, truth)
    )
    moved, real_motion = (
        float(torch.cat([part.motion for part in found]).mean()) for found in (parts, truth)
    )
    return Scores(
        variant=way.name,
        sampler=way.sampler.name,
        nfe=way.sampler.num_steps,
        seconds_per_clip=sum(part.seconds for part in parts) / len(features),
        proxy_frechet_distance=frechet_distance(features, reference),
        dynamic_degree_proxy=moved / real_motion,
    )


def format_table(table: list[Scores]) -> str:
    """Return the table as text."""
    head = f"{'':14}{'sampler':>13}{'NFE':>5}{'s/clip':>9}{'FD proxy':>10}{'motion/real':>13}"
    rows = [
        f"{row.variant:14}{row.sampler:>13}{row.nfe:>5}{row.seconds_per_clip:>9.3f}"
        f"{row.proxy_frechet_distance:>10.3f}{row.dynamic_degree_proxy:>13.2f}"
        for row in table
    ]
    return "\n".join([head, *rows])
