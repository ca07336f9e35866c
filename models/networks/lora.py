"""One frozen base, one low-rank branch, many strengths."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import HunyuanVideoTransformer3DModel
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from magicdistill.models.networks.config import LoraConfig

ADAPTER = "default"


def add_lora(transformer: HunyuanVideoTransformer3DModel, config: LoraConfig) -> None:
    """Freeze the transformer and add a trainable low-rank branch, zero at the start."""
    transformer.requires_grad_(requires_grad=False)
    transformer.add_adapter(
        PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.rank,
            target_modules="|".join(f"(?:{pattern})" for pattern in config.targets),
        ),
        adapter_name=ADAPTER,
    )


def lora_layers(module: nn.Module) -> Iterator[LoraLayer]:
    """Yield the layers that carry a branch."""
    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))


@contextmanager
def lora_strength(module: nn.Module, strength: float | Tensor) -> Iterator[None]:
    """Scale the branch: base + strength * LoRA (002 Eq. 6); a tensor (b,) gives one per sample.

    With activation checkpointing the context must cover the backward as well, because the
    recomputation reads the strength again.
    """
    scale = strength.view(-1, 1, 1) if isinstance(strength, Tensor) else strength
    layers = list(lora_layers(module))
    before = [layer.scaling[ADAPTER] for layer in layers]
    for layer in layers:
        layer.scaling[ADAPTER] = scale
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.scaling[ADAPTER] = value
