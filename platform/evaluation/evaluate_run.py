"""Score a run's generator on held-out clips, beside its teacher."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from torch import Tensor

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.proxies import ProxyVideoFeatures, flicker_proxy, motion
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.inference.contact_sheets import contact_sheet, save_clips, side_by_side
from magicdistill.platform.inference.variants import REAL, Variant
from magicdistill.platform.runs.run_directory import RunDirectory

CHUNK = 16
MEASURES = ("proxy_frechet_distance", "dynamic_degree_proxy", "flicker_proxy")
"""Fields of `Scores` that say how good the clips are."""


@dataclass(frozen=True)
class Scores:
    """One line of the table."""

    variant: str
    sampler: str
    nfe: int
    """Number of network evaluations (NFE) for one clip."""
    seconds_per_clip: float
    """Seconds that the network computes for one clip on one worker."""
    proxy_frechet_distance: float
    """Fréchet distance to the real clips in random-network features of decoded pixels; infinite
    if a generated pixel is not finite."""
    dynamic_degree_proxy: float
    """Mean difference of neighbouring frames, divided by that of the real clips."""
    flicker_proxy: float
    """Frame difference in the stiller half of the picture, divided by that of the real clips."""
    num_clips: int | None = None
    """Clips behind the distance, which only compares with distances of as many; None in the files
    of runs that did not record it."""


@dataclass(frozen=True)
class ScoredChunk:
    """Clips that one worker made at once, and their measures."""

    features: Tensor
    motion: Tensor
    flicker: Tensor
    pixels: Tensor
    """Those of them that are shown."""
    seconds: float
    nfe: int


def chunks(count: int, size: int = CHUNK) -> list[range]:
    """Split `count` rows into those that a worker measures at once."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)
class Evaluator:
    """An actor that generates, decodes and measures held-out clips."""

    def __init__(self, model_json: str, threads: int) -> None:
        from magicdistill.platform.inference.clip_generator import ClipGenerator  # slow to import

        torch.set_num_threads(threads)
        self.clip_generator = ClipGenerator(model_json)
        self.features = ProxyVideoFeatures().to(self.clip_generator.device)

    @torch.no_grad()
    def run(
        self, variant: Variant, cache: AnyPath, rows: range, seed: int, num_shown: int
    ) -> ScoredChunk:
        """Measure one variant on rows of the cache, of which the first `num_shown` are shown."""
        pixels, seconds, nfe = self.clip_generator.make(variant, cache, rows, seed)
        shown = pixels[: max(0, num_shown - rows.start)].clone()
        measures = (self.features(pixels), motion(pixels), flicker_proxy(pixels), shown)
        return ScoredChunk(*(measure.cpu() for measure in measures), seconds=seconds, nfe=nfe)


class Evaluators:
    """Actors that score one run after another and measure each set of real clips only once."""

    def __init__(self, recipe: Recipe) -> None:
        self.model, self.cluster = recipe.model, recipe.cluster
        evaluation = recipe.evaluation
        self.batch_size = evaluation.batch_size if evaluation else CHUNK
        self.num_shown = evaluation.num_shown if evaluation else 0
        self._actors: list[Any] = []
        self._real: dict[tuple[AnyPath, int], list[ScoredChunk]] = {}

    def warm_up(self, num_clips: int) -> None:
        """Start the actors beside other work, unless they would take GPUs from it."""
        count = self._num_actors(num_clips)
        free_cpus = ray.available_resources().get("CPU", 0)
        if not self.cluster.uses_gpus and free_cpus >= self.cluster.num_workers + count:
            self._actors = self._start(count)

    def measure(
        self, ways: Sequence[Variant], cache: AnyPath, num_clips: int, seed: int
    ) -> dict[str, list[ScoredChunk]]:
        """Return the scored chunks of the real clips and of each variant, by name."""
        count = min(num_clips, len(LatentCache(cache)))
        if (cache, count) not in self._real:
            real = Variant(REAL, None, SamplerConfig())
            self._real[cache, count] = self._run([real], cache, count, seed)[REAL]
        found = {REAL: self._real[cache, count]} | self._run(ways, cache, count, seed)
        if self.cluster.gpus_per_worker:
            self._actors.clear()  # the next training wants these GPUs
        return found

    def _run(
        self, ways: Sequence[Variant], cache: AnyPath, count: int, seed: int
    ) -> dict[str, list[ScoredChunk]]:
        parts = chunks(count, self.batch_size)
        tasks = [(way, cache, rows, seed, self.num_shown) for way in ways for rows in parts]
        self._actors = self._actors or self._start(self._num_actors(count))
        pool = ActorPool(self._actors)
        results: list[Any] = list(pool.map(lambda worker, task: worker.run.remote(*task), tasks))
        done = list(zip(tasks, results, strict=True))
        return {way.name: [part for task, part in done if task[0] is way] for way in ways}

    def _num_actors(self, num_clips: int) -> int:
        return min(self.cluster.num_workers, math.ceil(num_clips / self.batch_size))

    def _start(self, count: int) -> list[Any]:
        actor = Evaluator.options(num_gpus=self.cluster.gpus_per_worker)
        arguments = (self.model.model_dump_json(), self.cluster.threads_per_worker)
        return [actor.remote(*arguments) for _ in range(count)]


def evaluate(
    run: RunDirectory, cache: AnyPath, ways: Sequence[Variant], evaluators: Evaluators
) -> list[Scores]:
    """Score variants; write table, contact sheet, video and clips; return the table."""
    recipe = run.recipe()
    assert recipe.evaluation is not None
    parts = evaluators.measure(ways, cache, recipe.evaluation.num_clips, recipe.seed)
    table = [_score(way, parts[way.name], parts[REAL]) for way in ways]
    shown = {
        name: torch.cat([p.pixels for p in found])[: recipe.evaluation.num_shown]
        for name, found in parts.items()
    }
    contact_sheet(run.samples / "comparison.png", shown)
    side_by_side(run.samples / "comparison.mp4", shown, fps=recipe.evaluation.data.bucket.fps)
    save_clips(run.clips_path, shown)
    write_text(run.scores_path, json.dumps([asdict(row) for row in table], indent=2))
    return table


def read_scores(run: RunDirectory) -> list[Scores]:
    """Load the table of an evaluated run."""
    return [Scores(**row) for row in json.loads(run.scores_path.read_text())]


def _score(way: Variant, parts: list[ScoredChunk], truth: list[ScoredChunk]) -> Scores:
    def both(measure: str) -> Iterator[Tensor]:
        return (torch.cat([getattr(part, measure) for part in found]) for found in (parts, truth))

    features, reference = (np.asarray(found) for found in both("features"))
    moved, real_motion = (float(found.mean()) for found in both("motion"))
    flickers, real_flicker = (float(found.mean()) for found in both("flicker"))
    finite = bool(np.isfinite(features).all())
    return Scores(
        variant=way.name,
        sampler=way.sampler.name,
        nfe=parts[0].nfe,
        seconds_per_clip=sum(part.seconds for part in parts) / len(features),
        proxy_frechet_distance=frechet_distance(features, reference) if finite else math.inf,
        dynamic_degree_proxy=moved / real_motion,
        flicker_proxy=flickers / real_flicker,
        num_clips=len(features),
    )


def format_table(table: list[Scores]) -> str:
    """Return the table as text of at most 79 columns."""
    head = (
        f"{'':14}{'sampler':>12}{'NFE':>5}{'s/clip':>8}"
        f"{'FD proxy':>10}{'n':>5}{'motion/real':>12}{'flicker/real':>13}"
    )
    rows = [
        f"{row.variant:14}{row.sampler:>12}{row.nfe:>5}{row.seconds_per_clip:>8.3f}"
        f"{row.proxy_frechet_distance:>10.3f}{row.num_clips or '':>5}"
        f"{row.dynamic_degree_proxy:>12.2f}{row.flicker_proxy:>13.2f}"
        for row in table
    ]
    return "\n".join([head, *rows])
