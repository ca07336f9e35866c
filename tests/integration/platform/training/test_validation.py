"""Validation keeps no graph, and ranks that share the clips out see what one rank sees."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.sections import DeepSpeedEngineConfig, OptimizerConfig
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.training.validation import Validation
from tests.tiny_run import write_cache

LATENTS = (16, 2, 4, 4)
NUM_SHOWN = 3
"""Odd: two ranks make one clip twice."""


def small_recipe() -> Recipe:
    values = load_recipe("portrait-tiny-smoke").model_dump()
    values["model"]["vae"] = None
    values["evaluation"] |= {"num_shown": NUM_SHOWN, "num_scored": 4}
    return Recipe.model_validate(values)


class Counted(nn.Module):
    """A velocity field that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.num_calls = 0

    def forward(self, x: Tensor, sigma: Tensor, conditions: Any) -> Tensor:
        """Point away from the sample."""
        self.num_calls += 1
        return self.weight * x


def validate(
    cache: AnyPath, rank: int = 0, world_size: int = 1, network: Any = None
) -> dict[str, Any]:
    """Go through a validation as a training does; return what it gives."""
    torch.manual_seed(0)  # of the VAE's weights
    validation = Validation(
        small_recipe(), cache, rank=rank, world_size=world_size, device="cpu", num_scored=4
    )
    assert any(weight.requires_grad for weight in validation.vae.parameters())
    network = network or Counted()
    validation.measure_teacher(network)
    shown = validation.look(validation.generate(network))
    found = validation.health(shown) | validation.scores(network)
    return {"found": found, "pictures": shown.pictures, "calls": getattr(network, "num_calls", 0)}


def generator() -> VelocityModel:
    """The tiny network with random weights."""
    torch.manual_seed(1)
    return VelocityModel(build_transformer(PRESETS["portrait-tiny"].transformer))


def validate_sharded(cache: AnyPath, rank: int) -> dict[str, Any]:
    """Validate the network that ZeRO-3 shards; its gathers hang if ranks do not call alike."""
    engine = build_engine(
        DeepSpeedEngineConfig(zero_stage=3),
        generator(),
        OptimizerConfig(lr=1e-3),
        num_micro_batches=1,
    )
    weights = list(engine.module.parameters())
    found = validate(cache, rank, 2, engine.module)
    return found | {"sharded": all(weight.numel() == 0 for weight in weights)}


def run_rank(rank: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    cache = Path((folder / "cache").read_text())
    torch.save(validate(cache, rank, 2), folder / f"{rank}.pt")
    torch.save(validate_sharded(cache, rank), folder / f"{rank}-sharded.pt")
    dist.destroy_process_group()


def test_no_validation_keeps_a_tensor_for_a_backward(tmp_path: Path) -> None:
    saved: list[torch.Size] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    cache = write_cache(tmp_path, LATENTS, num_rows=4)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        (nn.Parameter(torch.ones(2)) ** 2).sum()
        assert saved, "the counter counts"
        saved.clear()
        validate(cache)
    assert saved == []


@pytest.mark.slow
def test_two_ranks_see_the_numbers_and_clips_of_one_also_under_zero_3(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "data", LATENTS, num_rows=4)
    (tmp_path / "cache").write_text(str(cache))
    multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=2, start_method="forkserver")
    alone = validate(cache)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["calls"] == second["calls"]
    assert first["found"] == second["found"] == pytest.approx(alone["found"], rel=1e-4)
    assert torch.equal(first["pictures"], alone["pictures"]) and len(alone["pictures"]) == NUM_SHOWN
    assert len(second["pictures"]) == 0
    alone = validate(cache, network=generator())
    first, second = (torch.load(tmp_path / f"{rank}-sharded.pt") for rank in (0, 1))
    assert first["sharded"] and second["sharded"]
    assert first["found"] == second["found"] == pytest.approx(alone["found"], rel=1e-3)
    torch.testing.assert_close(first["pictures"], alone["pictures"], atol=0.02, rtol=0)
