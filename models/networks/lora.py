"""LoRA: a low-rank branch beside a frozen base, at a strength that may differ from call to call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magicdistill.models.networks.backbones.kept_attention import keep_attention
from magicdistill.models.tensor_files import save_file

ADAPTER = "default"
BASE = "base_layer"
"""Name of the plain linear inside one that has a branch."""
IN_PEFT = "base_model.model."
"""Prefix of the names in a file of peft."""


def add_lora(transformer: ModelMixin, rank: int, targets: Sequence[str]) -> None:
    """Freeze the transformer and add a trainable low-rank branch, zero at the start.

    `targets` are patterns for the full names of the linears that get it.
    """
    transformer.requires_grad_(requires_grad=False)
    transformer.add_adapter(
        PeftLoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules="|".join(f"(?:{pattern})" for pattern in targets),
        ),
        adapter_name=ADAPTER,
    )


def merged(
    transformer: ModelMixin, read: Callable[[str], Tensor | None]
) -> Callable[[str], Tensor | None]:
    """Return a function that reads a parameter of the plain network, with the branch added.

    `read` returns a parameter by its name in the transformer, in float32, or None on a rank that
    does not write. The branch counts at strength 1. Without one, what `read` returns is returned.
    """
    branched = {name for name, part in transformer.named_modules() if isinstance(part, LoraLayer)}

    def read_merged(name: str) -> Tensor | None:
        module, _, kind = name.rpartition(".")
        if module not in branched:
            return read(name)
        weight = read(f"{module}.{BASE}.{kind}")
        if kind != "weight":
            return weight
        down, up = (read(f"{module}.lora_{part}.{ADAPTER}.weight") for part in "AB")
        if weight is None or down is None or up is None:
            return None
        return weight + up @ down

    return read_merged


def write_lora(
    transformer: ModelMixin,
    weights: Mapping[str, Tensor],
    folder: Path,
    base: str | None,
) -> None:
    """Write the branch as a folder of peft.

    `weights` holds its tensors by their names in the transformer, whose own parameters may be
    without storage; `base` is the location of the frozen weights, for peft's config.
    """
    config = transformer.peft_config[ADAPTER]
    replace(config, base_model_name_or_path=base, inference_mode=True).save_pretrained(folder)
    named = get_peft_model_state_dict(transformer, state_dict=dict(weights), adapter_name=ADAPTER)
    tensors = {f"{IN_PEFT}{name}": tensor for name, tensor in named.items()}
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def lora_layers(module: nn.Module) -> Iterator[LoraLayer]:
    """Yield the layers that carry a branch."""
    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))


def lora_strength(
    module: nn.Module, strength: float | Float[Tensor, " b"]
) -> AbstractContextManager[None]:
    """Scale the branch: base + strength * LoRA (002 Eq. 6); a tensor gives one per sample.

    A tensor is rounded to the dtype of the weights.
    """
    layers = list(lora_layers(module))
    if isinstance(strength, Tensor):
        strength = strength.view(-1, 1, 1).to(next(module.parameters()).dtype)
    return _Scales(layers, [strength] * len(layers))


def checkpoint_blocks(transformer: ModelMixin, *, keeps_attention: bool = False) -> None:
    """Recompute the blocks in the backward instead of keeping their activations.

    The recomputation uses the strength of the forward, even if another one is set by then.
    """
    transformer.enable_gradient_checkpointing(
        partial(checkpointed, keeps_attention=keeps_attention)
    )


def checkpointed(block: nn.Module, *inputs: Any, keeps_attention: bool = False) -> Any:
    """Run a block and recompute it in the backward, at the strength that is set now.

    `keeps_attention` keeps what attention returns, and recomputes the rest.
    """
    layers = list(lora_layers(block))
    scales = _Scales(layers, [layer.scaling[ADAPTER] for layer in layers])

    def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        if not keeps_attention:
            return nullcontext(), scales
        forward, recomputation = keep_attention()
        return forward, _Both(scales, recomputation)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def run_block(transformer: Any, block: nn.Module, *inputs: Any) -> Any:
    """Run a block; recompute it in the backward if the transformer has gradient checkpointing."""
    if torch.is_grad_enabled() and transformer.gradient_checkpointing:
        return transformer._gradient_checkpointing_func(block, *inputs)
    return block(*inputs)


class _Both(AbstractContextManager[None]):
    """Enters two contexts; may be entered repeatedly."""

    def __init__(self, *contexts: AbstractContextManager[object]) -> None:
        self.contexts = contexts
        self.stack = ExitStack()

    def __enter__(self) -> None:
        for context in self.contexts:
            self.stack.enter_context(context)

    def __exit__(self, *error: object) -> None:
        self.stack.close()


class _Scales(AbstractContextManager[None]):
    """Sets every layer's strength inside and restores it afterwards; may be entered repeatedly."""

    def __init__(self, layers: Sequence[LoraLayer], scales: Sequence[float | Tensor]) -> None:
        self.layers, self.scales = layers, list(scales)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    def _swap(self) -> None:
        before = [layer.scaling[ADAPTER] for layer in self.layers]
        for layer, scale in zip(self.layers, self.scales, strict=True):
            layer.scaling[ADAPTER] = scale
        self.scales = before
