"""Read held-out clips and what is sampled on them, in the same way in validation and evaluation."""

from collections.abc import Sequence
from pathlib import Path

import torch

from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.models.diffusion.samplers import Experts, Velocity
from magicdistill.models.methods.build import unsaid
from magicdistill.models.networks.offload import offload_layers
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.experts import OtherExpert
from magicdistill.platform.data.batches import collate


def held_out(cache: LatentCache, rows: Sequence[int], device: torch.device | str) -> Batch:
    """Read clips of a held-out cache by row."""
    return collate(cache, rows, positions=rows, device=device)


def load_network(path: Path, model: ModelConfig) -> VelocityModel:
    """Load a network to sample from, in bf16 where there is a GPU."""
    shapes, layout = unsaid(path, model)
    network = VelocityModel(load_transformer(path, shapes, layout=layout))
    return network.to(torch.bfloat16 if torch.cuda.is_available() else torch.float32).eval()


class OtherExperts:
    """Loads the other experts of networks, one at a time.

    A GPU holds of it the layer that computes alone, and so needs no room for two networks.
    """

    def __init__(self, model: ModelConfig, device: torch.device | str) -> None:
        self.model, self.device = model, device
        self.loaded: tuple[Path, VelocityModel] | None = None

    def beside(self, own: Velocity, other: OtherExpert | None) -> Velocity:
        """Return what is sampled: a network alone, or it and its other expert by the noise
        level."""
        if other is None:
            return own
        return Experts.of(own, self._network(other.weights), other.levels)

    def _network(self, weights: Path) -> VelocityModel:
        if self.loaded is None or self.loaded[0] != weights:
            self.loaded = None
            network = load_network(weights, self.model).requires_grad_(False)
            if torch.device(self.device).type != "cpu":
                offload_layers(network.transformer, self.device)
            self.loaded = (weights, network)
        return self.loaded[1]
