"""Generate and decode held-out clips."""

import time

import torch
from torch import Tensor

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.models.diffusion.guidance import forwards_per_step
from magicdistill.models.locations import find_weights
from magicdistill.models.methods.build import vae
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.platform.inference.generate import generate
from magicdistill.platform.inference.held_out_sampling import (
    OtherExperts,
    held_out,
    load_network,
)
from magicdistill.platform.inference.variants import Variant


class ClipGenerator:
    """Generates and decodes held-out clips; keeps the last network loaded, in bf16 on a GPU."""

    def __init__(self, model_json: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.recipe_model = ModelConfig.model_validate_json(model_json)
        self.vae = vae(self.recipe_model).to(self.device)
        self.loaded: tuple[str, VelocityModel] | None = None
        self.experts = OtherExperts(self.recipe_model, self.device)

    def make(
        self,
        variant: Variant,
        cache: AnyPath,
        rows: range,
        seed: int,
        *,
        sample_index: int = 0,
        num_frames: int | None = None,
    ) -> tuple[Tensor, float, int]:
        """Return pixels (b 3 t y x), seconds of network time, and network evaluations per clip.

        Generated clips are as long as the real ones, or have `num_frames` frames.
        """
        batch = held_out(LatentCache(cache), rows, self.device)
        if variant.weights is None:
            return self.vae.decode(batch.x0), 0.0, 0
        model = self._model(variant.weights)
        assert batch.conditions is not None
        channels, length, *sides = batch.x0.shape[1:]
        length = length if num_frames is None else self.vae.latent_frames(num_frames)
        start_s = time.monotonic()
        latents = generate(
            self.experts.beside(model, variant.other),
            variant.sampler,
            batch.conditions,
            (channels, length, *sides),
            seed=seed,
            positions=rows,
            sample_index=sample_index,
            null=batch.null,
        )
        seconds = time.monotonic() - start_s
        cfg = variant.sampler.cfg(embeds=model.guidance_embeds)
        forwards = forwards_per_step(cfg, embeds=False)
        return self.vae.decode(latents), seconds, variant.sampler.num_steps * forwards

    def _model(self, weights: str) -> VelocityModel:
        if self.loaded is None or self.loaded[0] != weights:
            self.loaded = None  # a GPU need not have room for two
            network = load_network(find_weights(weights, "model.teacher"), self.recipe_model)
            self.loaded = (weights, network.to(self.device))
        return self.loaded[1]
