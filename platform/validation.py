"""Pictures of fixed held-out clips while a generator trains."""

from pathlib import Path

import torch

from magicdistill.data_pipeline.cache import LatentCache
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.objectives.build import vae
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.generation import generate, held_out
from magicdistill.platform.pictures import contact_sheet
from magicdistill.platform.recipe import Recipe


class Validation:
    """The same clips and noise every time, on every rank, as sharded weights demand."""

    def __init__(self, recipe: Recipe, cache: Path, device: torch.device | str) -> None:
        assert recipe.evaluation is not None
        self.seed = recipe.seed
        self.sampler: SamplerConfig = getattr(recipe.method, "sampler", recipe.evaluation.teacher)
        rows = range(recipe.evaluation.num_shown)
        self.batch = held_out(LatentCache(cache), rows, device)
        self.vae = vae(recipe.model).to(device)
        self.real = self.vae.decode(self.batch.x0)

    def generate(self, velocity: Velocity) -> torch.Tensor:
        """Return generated latents."""
        conditions, shape = self.batch.conditions, self.batch.x0.shape[1:]
        assert conditions is not None
        return generate(
            velocity,
            self.sampler,
            conditions,
            shape,
            seed=self.seed,
            positions=self.batch.positions,
        )

    @torch.no_grad()
    def write(self, latents: torch.Tensor, path: Path) -> None:
        """Write real clips above generated ones."""
        contact_sheet(path, {"real": self.real, "generated": self.vae.decode(latents)})
