"""Pictures and scores of fixed held-out clips while a generator trains."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.methods.build import vae
from magicdistill.models.metrics.collapse_signs import collapse_signs, compare_signs
from magicdistill.models.metrics.suite import Measured, MetricSuite, summarise
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.models.objectives.types import Batch, Method
from magicdistill.platform.cluster import ranks
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.inference.contact_sheets import (
    SHOWN_PX,
    contact_sheet,
    shrink,
    side_by_side,
)
from magicdistill.platform.inference.generate import generate
from magicdistill.platform.inference.held_out_sampling import held_out
from magicdistill.platform.training.health import VALIDATION

CHUNK = 8
NUM_FRAMES = 9
"""Approximate number of frames of each clip in a contact sheet."""


def num_scored(recipe: Recipe) -> int:
    """Return the clips to score in training."""
    return (recipe.evaluation and recipe.evaluation.num_scored) or 0


class Validation:
    """The same clips and noise every time; all ranks call alike, as sharded weights demand.

    `num_scored` clips, shared out over the ranks, are for `scores`.
    """

    def __init__(
        self,
        recipe: Recipe,
        cache: AnyPath,
        *,
        rank: int,
        world_size: int,
        device: torch.device | str,
        num_scored: int = 0,
    ) -> None:
        assert recipe.evaluation is not None
        self.recipe, self.device, self.config = recipe, device, recipe.evaluation
        self.sampler = recipe.method.trained_sampler or self.config.teacher
        self.cache = LatentCache(cache)
        self.batch = held_out(self.cache, range(self.config.num_shown), device)
        self.vae = vae(recipe.model).to(device)
        self.real = self.vae.decode(self.batch.x0)
        self.beside = {"real": shrink(self.real)}
        """Clips that pictures show beside the generated ones."""
        together = self.ranks_together = recipe.cluster.sequence_parallel
        share = self._share(num_scored, world_size // together)
        self.scored = range(rank // together * share, (rank // together + 1) * share)
        if self.scored:
            self.suite = MetricSuite(self.config.networks_path, device, self.config.counted)
            truth = self._measure(lambda batch: batch.x0)
            assert truth is not None, "clips are made of bytes, which are numbers"
            self.truth = truth

    def measure_teacher(self, velocity: Velocity | None) -> None:
        """Take what health compares with from the teacher's clips; None: from the real ones.

        All later pictures show the teacher's clips too, and what its few Euler steps give.
        """
        pixels, many = self.real, self.config.teacher
        if velocity is not None:
            pixels = self.decode(self.generate(velocity, sampler=many))
            self.beside["teacher"] = shrink(pixels)
            if self.sampler != many:
                euler = self.sampler.model_copy(update={"name": "euler"})
                found = self.decode(self.generate(velocity, sampler=euler))
                self.beside["euler"] = shrink(found)
        self.teacher_signs = collapse_signs(pixels)

    def health(self, pixels: Tensor) -> dict[str, float]:
        """Return clips' collapse signs over those of the teacher's clips, and the drift."""
        ratios = compare_signs(collapse_signs(pixels), self.teacher_signs)
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
        fps = self.config.data.bucket.fps
        side_by_side(path.with_suffix(".mp4"), clips, fps=fps, zoom=zoom)

    def scores(self, velocity: Velocity) -> dict[str, float]:
        """Return every metric of the generator that counts and can be measured.

        One that gives no numbers any more is infinitely far from the real clips, and that is all.
        """
        if not self.scored:
            return {}
        found = self._measure(lambda batch: self.generate(velocity, batch))
        if found is None:
            return {f"{VALIDATION}proxy_frechet_distance": math.inf}
        metrics = summarise(found, self.truth, {}, self.config.counted)
        return {
            f"{VALIDATION}{name}": value
            for name, value in metrics.items()
            if isinstance(value, float)
        }

    def method_terms(
        self, method: Method, networks: Mapping[str, nn.Module], latents: Tensor
    ) -> dict[str, float]:
        """Return what the method logs of latents that `generate` made."""
        assert self.batch.conditions is not None
        rng = Rng(self.recipe.seed, -1, -1, self.batch.positions, self.device)
        terms = method.validation_terms(networks, latents, self.batch.conditions, rng)
        return {f"{VALIDATION}{name}": float(value) for name, value in terms.items()}

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
    def _measure(self, latents_of: Callable[[Batch], Tensor]) -> Measured | None:
        """Measure the clips of all ranks; None where pixels of one are no numbers."""
        chunks = (self.scored[i : i + CHUNK] for i in range(0, len(self.scored), CHUNK))
        own = [self._measure_chunk(rows, latents_of) for rows in chunks]
        together = [part for each in ranks.of_all(own)[:: self.ranks_together] for part in each]
        finite = [part for part in together if part is not None]
        return Measured.merged(finite) if len(finite) == len(together) else None

    def _measure_chunk(
        self, rows: Sequence[int], latents_of: Callable[[Batch], Tensor]
    ) -> Measured | None:
        batch = held_out(self.cache, rows, self.device)
        pixels, real = (self.vae.decode(x) for x in (latents_of(batch), batch.x0))
        finite = bool(pixels.isfinite().all())
        return self.suite.measure(pixels, real, self.config.data.bucket.fps) if finite else None
