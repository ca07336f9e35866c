"""One rank of the planner's checks: writes predicted and measured bytes as JSON."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.config import KernelsConfig, LoraConfig, Recompute
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.sequence_parallel import join_sequence_group
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.checkpoints.engine_state import local_shard
from magicdistill.platform.config.sections import DeepSpeedEngineConfig, OptimizerConfig
from magicdistill.platform.engines.engine import DeepSpeedEngine
from magicdistill.platform.planning.flops import Sample, saved_bytes
from magicdistill.platform.planning.memory import parts_of, state_rows, total
from tests.tiny import tiny_inputs, tiny_shapes

NUM_RANKS = 2
SMALL = tiny_shapes(num_attention_heads=4, num_single_layers=2, num_text_tokens=4)
WIDE = SMALL.model_copy(update={"num_attention_heads": 8, "num_layers": 3, "num_single_layers": 5})
ENGINES = {
    "ZeRO-0 fp32 small critic": (0, "fp32", SMALL, "critic"),
    "ZeRO-1 bf16 small critic": (1, "bf16", SMALL, "critic"),
    "ZeRO-2 fp32 wide generator": (2, "fp32", WIDE, "generator"),
    "ZeRO-2 bf16 wide generator": (2, "bf16", WIDE, "generator"),
    "ZeRO-3 fp32 small critic": (3, "fp32", SMALL, "critic"),
    "ZeRO-3 bf16 wide critic": (3, "bf16", WIDE, "critic"),
}
Bytes = dict[str, float]


def build(role: str, shapes: HunyuanVideoConfig) -> tuple[nn.Module, list[dict[str, str]]]:
    """Return a role's network, and the arguments of the forwards of its loss."""
    transformer = build_transformer(shapes)
    if role == "generator":
        return VelocityModel(transformer), [{}]
    critic = Critic(transformer, LoraConfig(rank=4), adversarial=True)
    return critic, [{"output": "velocity"}, {"output": "logits"}]


def check_engine(
    stage: Any, precision: Any, shapes: HunyuanVideoConfig, role: str
) -> dict[str, Bytes]:
    """Run one accumulation window and its update; compare what the engine keeps."""
    torch.manual_seed(0)
    module, forwards = build(role, shapes)
    parts = parts_of(role, module)
    config = DeepSpeedEngineConfig(zero_stage=stage, precision=precision)
    engine = DeepSpeedEngine(config, module, OptimizerConfig(lr=1e-3), num_micro_batches=2)
    gradients = 0.0
    for last in (False, True):
        outputs = [engine(*tiny_inputs(), **arguments).square().mean() for arguments in forwards]
        engine.backward(torch.stack(outputs).sum(), last=last)
        gradients = max(gradients, num_bytes(gradient_tensors(engine)))
    engine.step()
    parameters = [local_shard(p) for p in module.parameters()]
    own = {tensor.untyped_storage().data_ptr() for tensor in parameters}
    states = [t for t in optimizer_tensors(engine) if t.untyped_storage().data_ptr() not in own]
    rows = [row for part in parts for row in state_rows(part, config, dist.get_world_size())]
    kinds = ("parameters", "gradients", "optimiser")
    return {
        "predicted": {kind: total([r for r in rows if r.kind == kind]) for kind in kinds},
        "measured": {
            "parameters": float(sum(p.nbytes for p in parameters)),
            "gradients": gradients,
            "optimiser": num_bytes(states),
        },
    }


def optimizer_tensors(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """Yield what AdamW updates, and its moments."""
    adam = engine.engine.basic_optimizer
    for group in adam.param_groups:
        yield from group["params"]
    yield from getattr(engine.engine.optimizer, "fp32_partitioned_groups_flat", ())
    for state in adam.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def gradient_tensors(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """Yield gradients wherever the ZeRO stage keeps them."""
    optimizer = engine.engine.optimizer
    if (flat := getattr(optimizer, "grad_partitions_flat_buffer", None)) is not None:
        yield flat
    yield from getattr(optimizer, "fp32_groups_gradients_flat", ())
    for name in ("averaged_gradients", "all_grad_tensors"):
        if isinstance(groups := getattr(optimizer, name, None), dict):
            yield from (tensor for group in groups.values() for tensor in group or ())
    yield from (p.grad for p in engine.module.parameters() if p.grad is not None)


def num_bytes(tensors: Iterator[Tensor] | list[Tensor]) -> float:
    """Return the bytes of all storages together, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return float(sum(storages.values()))


def check_sequence(recompute: Recompute) -> dict[str, Bytes]:
    """Compare what a rank keeps of the forward of a sample that two ranks share."""
    torch.manual_seed(0)
    network = VelocityModel(build_transformer(WIDE))
    set_kernels(network, KernelsConfig(recompute_blocks=recompute), join_sequence_group(2))
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        network(*tiny_inputs())
    activations = [t for t in kept if t.untyped_storage().data_ptr() not in parameters]
    sample = Sample(WIDE, 3, 12, 12, sequence_parallel=2, activation_bytes=4)
    predicted = saved_bytes(sample, ForwardPass("generator", "", "weights"), recompute=recompute)
    return {
        "predicted": {"saved activations": predicted},
        "measured": {"saved activations": num_bytes(activations)},
    }


def run_rank(rank: int, out: Path) -> None:
    """Check everything, and write it from rank 0."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    meeting = out.with_name("meeting")
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=NUM_RANKS
    )
    found = {name: check_engine(*setting) for name, setting in ENGINES.items()}
    found["sequence parallel 2, kept"] = check_sequence("none")
    found["sequence parallel 2, recomputed"] = check_sequence("full")
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.destroy_process_group()
