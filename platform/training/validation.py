"""Pictures and scores of fixed held-out clips while a generator trains."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np
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
from magicdistill.platform.config.experts import other_expert
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.teacher_sampling import teacher_sampler
from magicdistill.platform.inference.contact_sheets import (
    SHOWN_PX,
    contact_sheet,
    shrink,
    side_by_side,
    to_uint8,
)
from magicdistill.platform.inference.generate import generate
from magicdistill.platform.inference.held_out_sampling import OtherExperts, held_out
from magicdistill.platform.training.health import VALIDATION

CHUNK = 8
"""Clips, at most, that are generated at once to be scored."""
NUM_FRAMES = 9
"""Approximate number of frames of each clip in a contact sheet."""
T = TypeVar("T")


def num_scored(recipe: Recipe) -> int:
    """Return the clips to score in training."""
    return (recipe.evaluation and recipe.evaluation.num_scored) or 0


class Shown(NamedTuple):
    """What is kept of the decoded clips that are shown."""

    signs: dict[str, float]
    """Their collapse signs, the same numbers on all ranks."""
    pictures: Tensor
    """The clips, small, in [-1, 1] (n 3 t y x), on the first rank; none on the others."""


class Validation:
    """The same clips and noise every time, without a gradient.

    The sequence groups share the clips out, and the ranks of a group what is decoded of them. All
    ranks call the networks equally often, as sharded weights demand: where the clips do not divide,
    some are made twice. `num_scored` further clips are for `scores`.
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
        self.many_steps = teacher_sampler(recipe)
        self.sampler = recipe.method.trained_sampler or self.many_steps
        self.cache = LatentCache(cache)
        together = self.ranks_together = recipe.cluster.sequence_parallel
        group, self.place = divmod(rank, together)
        num_groups, num_shown = world_size // together, self.config.num_shown
        share = math.ceil(num_shown / num_groups)
        self.rows = [row % num_shown for row in range(group * share, (group + 1) * share)]
        """The shown clips of this rank's group."""
        self.batches = [held_out(self.cache, [row], device) for row in self.rows]
        self.vae = vae(recipe.model).to(device)
        self.vae.enable_tiling()
        self.real = self.look([batch.x0 for batch in self.batches])
        self.beside = {"real": self.real.pictures}
        """Clips that pictures show beside the generated ones."""
        self.experts = OtherExperts(recipe.model, device)
        share = self._share(num_scored, num_groups)
        self.scored = range(group * share, (group + 1) * share)
        if self.scored:
            networks, window = self.config.networks_path, self.config.fvd_frames
            self.suite = MetricSuite(networks, device, self.config.counted, window)
            truth = self._measure(lambda batch: batch.x0)
            assert truth is not None, "clips are made of bytes, which are numbers"
            self.truth = truth

    def measure_teacher(self, velocity: Velocity | None) -> None:
        """Take what health compares with from the teacher's clips; None: from the real ones.

        All later pictures show the teacher's clips too, and what its few Euler steps give.
        """
        shown, many = self.real, self.many_steps
        if velocity is not None:
            teacher = other_expert(self.recipe, self.recipe.model.teacher)
            field = self.experts.beside(velocity, teacher)
            shown = self.look(self._generate_shown(field, many))
            self.beside["teacher"] = shown.pictures
            if self.sampler != many:
                euler = self.sampler.model_copy(update={"name": "euler"})
                self.beside["euler"] = self.look(self._generate_shown(field, euler)).pictures
        self.teacher_signs = shown.signs

    def health(self, shown: Shown) -> dict[str, float]:
        """Return clips' collapse signs over those of the teacher's clips, and the drift."""
        ratios = compare_signs(shown.signs, self.teacher_signs)
        return {f"health/{name}": ratio for name, ratio in ratios.items()}

    def generate(self, velocity: Velocity) -> list[Tensor]:
        """Return latents (1 c f h w) of this group's shown clips, made one at a time.

        A network that is one of two experts makes the steps at its own noise levels alone.
        """
        return self._generate_shown(self._with_other(velocity), self.sampler)

    def look(self, latents: Sequence[Tensor]) -> Shown:
        """Decode this group's shown clips, one at a time, and exchange what is kept of them."""
        signs, pictures = dict[int, dict[str, float]](), dict[int, np.ndarray]()
        for slot in range(self.place, len(latents), self.ranks_together):
            pixels, row = self._decode(latents[slot]), self.rows[slot]
            signs[row], pictures[row] = collapse_signs(pixels), to_uint8(shrink(pixels))
        together = _in_order(ranks.to_first(pictures))
        shown = np.concatenate(together) if together else np.empty((0, 3, 1, 1, 1))
        return Shown(
            _means(_in_order(ranks.of_all(signs))), torch.from_numpy(shown).float() / 127.5 - 1
        )

    def write(self, shown: Shown, path: Path) -> None:
        """Write a sheet and a video of the real clips, the teacher's and the generated ones."""
        name = "student" if "euler" in self.beside else "generated"
        clips = self.beside | {name: shown.pictures}
        num_frames, *sides = shown.pictures.shape[-3:]
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
        field = self._with_other(velocity)
        found = self._measure(lambda batch: self._generate(field, batch, self.sampler))
        if found is None:
            return {f"{VALIDATION}proxy_frechet_distance": math.inf}
        metrics = summarise(found, self.truth, {}, self.config.counted)
        return {
            f"{VALIDATION}{name}": value
            for name, value in metrics.items()
            if isinstance(value, float)
        }

    @torch.no_grad()
    def method_terms(
        self, method: Method, networks: Mapping[str, nn.Module], latents: Sequence[Tensor]
    ) -> dict[str, float]:
        """Return what the method logs of latents that `generate` made, on average over clips."""
        found: dict[int, dict[str, float]] = {}
        for row, batch, x0 in zip(self.rows, self.batches, latents, strict=True):
            assert batch.conditions is not None
            rng = Rng(self.recipe.seed, -1, -1, batch.positions, self.device)
            terms = method.validation_terms(networks, x0, batch.conditions, rng)
            found[row] = {f"{VALIDATION}{name}": float(value) for name, value in terms.items()}
        return _means(_in_order(ranks.of_all(found)))

    @torch.no_grad()  # inference_mode would leave gathered parameters that no gradient may pass
    def _decode(self, latents: Tensor) -> Tensor:
        """Return pixels of clips, decoded one at a time."""
        return torch.cat([self.vae.decode(one[None]) for one in latents])

    def _with_other(self, velocity: Velocity) -> Velocity:
        """Return what is sampled of the network that is trained."""
        other = other_expert(self.recipe, None, self.recipe.model.other_expert)
        return self.experts.beside(velocity, other)

    def _generate_shown(self, velocity: Velocity, sampler: SamplerConfig) -> list[Tensor]:
        return [self._generate(velocity, batch, sampler) for batch in self.batches]

    def _generate(self, velocity: Velocity, batch: Batch, sampler: SamplerConfig) -> Tensor:
        """Return generated latents of a batch's clips."""
        assert batch.conditions is not None
        return generate(
            velocity,
            sampler,
            batch.conditions,
            batch.x0.shape[1:],
            seed=self.recipe.seed,
            positions=batch.positions,
            null=batch.null,
        )

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
        size = min(CHUNK, self.config.batch_size)
        chunks = (self.scored[i : i + size] for i in range(0, len(self.scored), size))
        own = [self._measure_chunk(rows, latents_of) for rows in chunks]
        together = [part for each in ranks.of_all(own)[:: self.ranks_together] for part in each]
        finite = [part for part in together if part is not None]
        return Measured.merged(finite) if len(finite) == len(together) else None

    def _measure_chunk(
        self, rows: Sequence[int], latents_of: Callable[[Batch], Tensor]
    ) -> Measured | None:
        batch = held_out(self.cache, rows, self.device)
        pixels, real = (self._decode(x) for x in (latents_of(batch), batch.x0))
        finite = bool(pixels.isfinite().all())
        return self.suite.measure(pixels, real, self.config.data.bucket.fps) if finite else None


def _in_order(parts: Sequence[Mapping[int, T]]) -> list[T]:
    """Return what the ranks have found of each clip, in the order of the clips."""
    merged = {row: found for part in parts for row, found in part.items()}
    return [merged[row] for row in sorted(merged)]


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over clips."""
    return {name: fmean(row[name] for row in rows) for name in rows[0]}
