"""One rank of the ZeRO-3 checks: writes what it finds as JSON beside the weights."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from magicdistill.models.networks.backbones.registry import family_in
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import checkpoint_blocks, lora_strength
from magicdistill.models.networks.state_dicts import fill
from magicdistill.models.networks.transformer import (
    VelocityModel,
    copy_transformer,
    load_transformer,
)
from magicdistill.models.networks.weights import save_transformer
from magicdistill.platform.config.sections import DeepSpeedEngineConfig, OptimizerConfig
from magicdistill.platform.engines.deepspeed_import import import_deepspeed
from magicdistill.platform.engines.engine import DeepSpeedEngine
from magicdistill.platform.engines.zero3 import placement

STRENGTHS = torch.tensor([0.25, 1.0])


@contextmanager
def peak_memory(found: dict[str, float]) -> Iterator[None]:
    """Measure how far this process's own memory grows, in MiB; mapped files are not its own."""
    start, done = own_memory_mib(), threading.Event()
    found["peak_mib"] = 0.0

    def watch() -> None:
        while not done.is_set():
            found["peak_mib"] = max(found["peak_mib"], own_memory_mib() - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    found["kept_mib"] = own_memory_mib() - start


def own_memory_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def inputs(pooled_dim: int = 6) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 2, 4, 4, generator=generator)
    conditions = Conditions.null(x[:, :, :1], num_tokens=2, text_dim=6, pooled_dim=pooled_dim)
    return x, torch.tensor([0.3, 0.8]), conditions


def memory_of_loading(folder: Path) -> dict[str, Any]:
    """Stream the large folder into shards."""
    found: dict[str, float] = {}
    family_in(folder).backbone()  # imports what is the interpreter's own
    with peak_memory(found):
        transformer = load_transformer(
            folder, placement=placement(DeepSpeedEngineConfig(zero_stage=3))
        )
    sharded = sum(p.numel() == 0 for p in transformer.parameters())
    return found | {"sharded": sharded, "parameters": len(list(transformer.parameters()))}


def wrong_keys(folder: Path) -> dict[str, Any]:
    """Every rank must refuse a checkpoint that does not fit."""
    zero3 = placement(DeepSpeedEngineConfig(zero_stage=3))
    transformer = load_transformer(folder, placement=zero3)
    try:
        fill(transformer, [{"proj_out.bias": torch.zeros(1), "other": torch.zeros(1)}], zero3)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": None}


def scores(folder: Path, out: Path, pooled_dim: int = 6) -> dict[str, Any]:
    """Train and run the critic in bfloat16, attention kept, and save the generator."""
    config = DeepSpeedEngineConfig(zero_stage=3, precision="bf16")
    zero3, optimizer = placement(config), OptimizerConfig(lr=1e-2)
    base = load_transformer(folder, placement=zero3)
    generator = DeepSpeedEngine(config, VelocityModel(copy_transformer(base, zero3)), optimizer, 1)
    checkpoint_blocks(base, keeps_attention=True)
    torch.manual_seed(0)
    critic = Critic(base, LoraConfig(rank=2), adversarial=True, placement=zero3)
    engine = DeepSpeedEngine(config, critic, optimizer, 1)
    x, sigma, conditions = inputs(pooled_dim)
    norms = []
    for _ in range(3):
        with lora_strength(engine.module, STRENGTHS):
            v = engine(x, sigma, conditions, output="velocity")
            logits = critic(x, sigma, conditions, output="logits")
        engine.backward((v - x).square().mean() + logits.square().mean(), last=True)
        norms.append(engine.step()["grad_norm"])
    with torch.no_grad():
        weak, strong = (run(engine, value, x, sigma, conditions) for value in STRENGTHS.tolist())
        both = run(
            engine, STRENGTHS.repeat_interleave(2), x.repeat(2, 1, 1, 1, 1), sigma.repeat(2),
            Conditions.cat([conditions, conditions]),
        )  # fmt: skip
        generated = generator(x, sigma, conditions)
        whole = VelocityModel(load_transformer(folder)).to(torch.bfloat16)(x, sigma, conditions)
    generator.backward(generator(x, sigma, conditions).square().mean(), last=True)
    generator.step()
    generator.snapshot().write(out / "generator")
    save_transformer(
        generator.module.transformer, out / "model", torch.float32, placement=zero3,
        max_file_bytes=2**15,
    )  # fmt: skip
    return {
        "norms": norms,
        "doubled_minus_two": (both - torch.cat([weak, strong])).abs().max().item(),
        "weak_minus_strong": (weak - strong).abs().max().item(),
        "sharded_minus_whole": (generated - whole).abs().max().item(),
    }


def run(engine: Callable[..., torch.Tensor], strength: Any, *args: Any) -> torch.Tensor:
    with lora_strength(engine.module, strength):  # type: ignore[attr-defined]
        return engine(*args, output="velocity")


def main(folder: Path) -> None:
    import_deepspeed().init_distributed(dist_backend="gloo")
    found = memory_of_loading(folder / "large")
    found |= wrong_keys(folder / "small")
    found |= scores(folder / "small", folder)
    found["wan"] = scores(folder / "wan", folder / "of-wan", pooled_dim=0)
    found["hunyuan15"] = scores(folder / "small15", folder / "hunyuan15")
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
