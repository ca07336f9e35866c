"""A rank that trains a small generator under DeepSpeed's ZeRO-3 and notes what it gathers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.config.sections import DeepSpeedEngineConfig, OptimizerConfig
from magicdistill.platform.engines.deepspeed_import import import_deepspeed
from magicdistill.platform.engines.engine import build_optimizer, deepspeed_config
from magicdistill.platform.engines.zero3 import placement
from tests.tiny import tiny_inputs, tiny_shapes

SHAPES = tiny_shapes(num_attention_heads=4, num_layers=2, num_single_layers=3, num_text_tokens=4)
KERNELS = KernelsConfig(recompute_blocks="full")
LIMITS: dict[str, dict[str, int]] = {
    name: dict(
        zip(
            ("prefetch_bucket_size", "max_live_parameters", "max_reuse_distance"),
            numbers,
            strict=True,
        )
    )
    for name, numbers in {
        "a small bucket": (20_000, 10**9, 1),
        "few whole parameters": (50_000, 100_000, 1),
        "parameters kept": (50_000, 200_000, 100_000),
    }.items()
}
Notes = dict[str, list[list[str]]]


def run(rank: int, meeting: Path, results: Any) -> None:
    """Put the notes of the last of four updates into `results`, by the name of the limits."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
    for name, limits in LIMITS.items():
        results.put((name, notes_of({f"stage3_{key}": value for key, value in limits.items()})))
    dist.destroy_process_group()


def notes_of(limits: dict[str, int]) -> Notes:
    """Train and return which parameters each module needed, and what each gather held."""
    config = DeepSpeedEngineConfig(zero_stage=3)
    torch.manual_seed(0)
    network = VelocityModel(build_transformer(SHAPES, placement(config)))
    set_kernels(network, KERNELS)
    optimizer, _ = build_optimizer([list(network.parameters())], OptimizerConfig(lr=1e-3))
    settings = deepspeed_config(config, num_micro_batches=1)
    settings["zero_optimization"] |= limits
    engine = import_deepspeed().initialize(model=network, optimizer=optimizer, config=settings)[0]
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    parameters: dict[str, Any] = dict(network.named_parameters())
    names = {parameter.ds_id: name for name, parameter in parameters.items()}
    notes: Notes = {"needed": [], "gathered": []}
    fetch, gather = (
        coordinator.fetch_sub_module,
        "_PartitionedParameterCoordinator__all_gather_params",
    )
    send: Callable[..., None] = getattr(coordinator, gather)

    def noted_fetch(module: nn.Module, forward: bool) -> None:
        own: list[Any] = list(module.parameters(recurse=False))
        notes["needed"].append([names[p.ds_id] for p in own])
        fetch(module, forward)

    def noted_gather(parameters: set[Any], forward: bool) -> None:
        missing = [names[p.ds_id] for p in parameters if p.ds_status.name == "NOT_AVAILABLE"]
        notes["gathered"].append(sorted(missing))
        send(parameters, forward)

    coordinator.fetch_sub_module = noted_fetch
    setattr(coordinator, gather, noted_gather)
    for _ in range(4):
        notes["needed"].clear()
        notes["gathered"].clear()
        loss: Tensor = engine(*tiny_inputs()).square().mean()
        engine.backward(loss)
        engine.step()
    return notes
