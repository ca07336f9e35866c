"""Scoring one checkpoint after another."""

from pathlib import Path

import torch

from magicdistill.data_pipeline.io.storage import place
from magicdistill.models.methods.build import untrained_generator
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.platform.checkpoints.checkpoints import EMA, GENERATOR
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.validation import Validation, num_scored


class CheckpointEvaluator:
    """Generates the same held-out clips with one checkpoint after another, and measures them."""

    def __init__(self, run: RunDirectory, held_out: str) -> None:
        recipe = run.recipe()
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        alone = recipe.cluster.model_copy(update={"sequence_parallel": 1})
        self.validation = Validation(
            recipe.model_copy(update={"cluster": alone}),
            place(held_out),
            rank=0,
            world_size=1,
            device=device,
            num_scored=num_scored(recipe),
        )
        network = VelocityModel(untrained_generator(recipe.model, recipe.method.generator_lora))
        set_kernels(network, recipe.kernels)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.network = network.to(device, dtype).eval()

    @torch.no_grad()
    def score(self, checkpoint: Path) -> dict[str, float]:
        """Return the metrics of a checkpoint's generator, of its averaged weights if it has any."""
        averaged = checkpoint / EMA
        weights = role_weights(averaged if averaged.is_dir() else checkpoint / GENERATOR)
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name]())
        return self.validation.scores(self.network)
