"""Pictures and scores of fixed held-out clips while a generator trains."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magicdistill.data_pipeline.cache import LatentCache
from magicdistill.data_pipeline.storage import AnyPath
from magicdistill.models.diffusion.draws import Draws
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.proxies import ProxyVideoFeatures, flicker_proxy, motion
from magicdistill.models.metrics.vitals import compare_signs, vital_signs
from magicdistill.models.objectives.build import vae
from magicdistill.models.objectives.config import (
    DistributionMatchingConfig,
    SamplerConfig,
    WeakToStrongPart,
)
from magicdistill.models.objectives.score_gap import weak_to_strong_gap
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.generation import generate, held_out
from magicdistill.platform.pictures import SHOWN_PX, contact_sheet, shrink, side_by_side
from magicdistill.platform.recipe import Recipe

CHUNK = 8
NUM_FRAMES = 9
"""About as many of a clip are in a contact sheet."""


class Validation:
    """The same clips and noise every time; all ranks call alike, as sharded weights demand."""

    def __init__(
        self,
        recipe: Recipe,
        cache: AnyPath,
        *,
        rank: int,
        world_size: int,
        device: torch.device | str,
    ) -> None:
        assert recipe.evaluation is not None
        self.recipe, self.device = recipe, device
        self.sampler: SamplerConfig = getattr(recipe.method, "sampler", recipe.evaluation.teacher)
        self.cache = LatentCache(cache)
        self.batch = held_out(self.cache, range(recipe.evaluation.num_shown), device)
        self.vae = vae(recipe.model).to(device)
        self.real = self.vae.decode(self.batch.x0)
        self.beside = {"real": shrink(self.real)}
        """Clips that pictures show beside the generated ones."""
        together = self.ranks_together = recipe.cluster.sequence_parallel
        share = self._share(recipe.evaluation.num_scored or 0, world_size // together)
        self.scored = range(rank // together * share, (rank // together + 1) * share)
        if self.scored:
            self.features = ProxyVideoFeatures().to(device)
            self.truth = self._measure(lambda batch: batch.x0)

    def measure_teacher(self, velocity: Velocity | None) -> None:
        """Take what health compares with from the teacher's clips; None: from the real ones.

        All later pictures show the teacher's clips too, and what its few Euler steps give.
        """
        assert self.recipe.evaluation is not None
        pixels, many = self.real, self.recipe.evaluation.teacher
        if velocity is not None:
            pixels = self.decode(self.generate(velocity, sampler=many))
            self.beside["teacher"] = shrink(pixels)
            if self.sampler != many:
                euler = self.sampler.model_copy(update={"name": "euler"})
                found = self.decode(self.generate(velocity, sampler=euler))
                self.beside["euler"] = shrink(found)
        self.teacher_signs = vital_signs(pixels)

    def health(self, pixels: Tensor) -> dict[str, float]:
        """Return the vital signs of generated clips over those of the teacher's, and the drift."""
        ratios = compare_signs(vital_signs(pixels), self.teacher_signs)
        return {f"health/{name}": ratio for name, ratio in ratios.items()}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels."""
        return self.vae.decode(latents)

    def generate(
        self, velocity: Velocity, batch: Batch | None = None, sampler: SamplerConfig | None = None
    ) -> Tensor:
        """Return generated latents, by default of the clips that are shown."""
        batch = batch or self.batch
        assert batch.conditions is not None
        return generate(
            velocity,
            sampler or self.sampler,
            batch.conditions,
            batch.x0.shape[1:],
            seed=self.recipe.seed,
            positions=batch.positions,
            null=batch.null,
        )

    def write(self, pixels: Tensor, path: Path) -> None:
        """Write a sheet and a video of the real clips, the teacher's and the generated ones."""
        clips = self.beside | {"student" if "euler" in self.beside else "generated": shrink(pixels)}
        num_frames, *sides = pixels.shape[-3:]
        zoom = max(1, SHOWN_PX // max(sides))
        stride = max(2, num_frames // NUM_FRAMES)
        contact_sheet(path, clips, frame_stride=stride, zoom=zoom)
        assert self.recipe.evaluation is not None
        fps = self.recipe.evaluation.data.bucket.fps
        side_by_side(path.with_suffix(".mp4"), clips, fps=fps, zoom=zoom)

    def scores(self, velocity: Velocity) -> dict[str, float]:
        """Score the generator on `num_scored` clips, shared out over the ranks."""
        if not self.scored:
            return {}
        found = self._measure(lambda batch: self.generate(velocity, batch))
        features, reference = (rows[:, :-2].numpy() for rows in (found, self.truth))
        finite = bool(found.isfinite().all())
        moved, flickers = (found[:, -2:].mean(0) / self.truth[:, -2:].mean(0)).tolist()
        return {
            "validation/proxy_frechet_distance": (
                frechet_distance(features, reference) if finite else math.inf
            ),
            "validation/dynamic_degree_proxy": moved,
            "validation/flicker_proxy": flickers,
        }

    def score_gap(self, networks: Mapping[str, nn.Module], latents: Tensor) -> dict[str, float]:
        """Compare weak-to-strong's gap with the plain one on latents that `generate` made."""
        method, conditions = self.recipe.method, self.batch.conditions
        if not isinstance(method, WeakToStrongPart) or method.alpha_weak == 0:
            return {}
        assert isinstance(method, DistributionMatchingConfig) and conditions is not None
        critic = networks["critic"]
        gap = weak_to_strong_gap(
            partial(critic, output="velocity"),
            critic,
            latents,
            conditions,
            Draws(self.recipe.seed, -1, -1, self.batch.positions, self.device),
            method.score_sigma,
            alpha_weak=method.alpha_weak,
            alpha_strong=method.alpha_strong,
        )
        return {f"validation/{name}": float(value) for name, value in gap.items()}

    def _share(self, wanted: int, groups: int) -> int:
        """Return the scored clips of each group: as many on all, so that all call alike."""
        share = min(math.ceil(wanted / groups), len(self.cache) // groups)
        if wanted and not share:
            raise ValueError(
                f"evaluation.num_scored: {len(self.cache)} held-out clips do not reach for "
                f"{groups} groups of workers; give it more clips or set num_scored to null"
            )
        return share

    @torch.no_grad()
    def _measure(self, latents_of: Callable[[Batch], Tensor]) -> Tensor:
        """Return features, motion and flicker of the clips of all ranks, one row a clip."""
        rows = []
        for part in (self.scored[i : i + CHUNK] for i in range(0, len(self.scored), CHUNK)):
            pixels = self.vae.decode(latents_of(held_out(self.cache, part, self.device)))
            measures = (motion(pixels), flicker_proxy(pixels))
            rows.append(torch.cat([self.features(pixels), torch.stack(measures, 1)], dim=1))
        return over_ranks(torch.cat(rows), self.ranks_together).cpu()


def over_ranks(rows: Tensor, ranks_together: int) -> Tensor:
    """Join the ranks' rows, as many on each; `ranks_together` ranks have the same ones."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered[::ranks_together])
