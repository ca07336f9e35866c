"""How the blocks of transformers are computed: attention kernels, compilation, split sequences."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from magicdistill.models.networks.backbones.joint_attention import attend
from magicdistill.models.networks.backbones.registry import backbone_of, find_family
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig
from magicdistill.models.networks.discriminator import Discriminator
from magicdistill.models.networks.lora import checkpoint_blocks, checkpointed
from magicdistill.models.networks.sequence_parallel import WHOLE_SEQUENCE, SequenceGroup

FASTEST_FIRST: dict[int, tuple[AttentionKernel, ...]] = {
    8: ("flash", "cudnn"),
    9: ("flash3", "cudnn", "flash"),
    10: ("cudnn", "flash"),
}
"""Kernels by the major compute capability of the GPUs that have them: Ampere and Ada, Hopper,
Blackwell. Orders are those of published figures; see `platform/planning/gpu_rates.py`."""
HINTS: dict[AttentionKernel, str] = {
    "flash": "an NVIDIA GPU from compute capability 8.0 on and bf16",
    "cudnn": "an NVIDIA GPU from compute capability 8.0 on, bf16 and a torch built with cuDNN",
    "flash3": "a Hopper GPU and the package flash_attn_interface, which is installed apart",
}
HEAD_DIM = 128
"""Width of the heads with which kernels are tried: that of the large presets."""


def set_kernels(
    module: nn.Module,
    config: KernelsConfig,
    sequence: SequenceGroup = WHOLE_SEQUENCE,
    **compile_options: Any,
) -> None:
    """Compute the blocks of all transformers and discriminators inside as the recipe asks.

    Outputs and gradients stay the same. Call once, before an engine wraps the module;
    `compile_options` go to torch.compile. Raises ValueError if a backbone has no such kernel or
    cannot share its sample in the sequence group, RuntimeError if this machine cannot run the
    kernel.
    """
    keeps_attention = config.recompute_blocks == "selective"
    asked: AttentionKernel | None = None if config.attention == "auto" else config.attention
    if asked is not None:
        demand_kernel(asked)
    for part in module.modules():
        if isinstance(part, Discriminator):
            backbone, blocks = part.backbone, [part.block]
            if config.recompute_blocks != "none":
                part.checkpointing = partial(checkpointed, keeps_attention=keeps_attention)
            if sequence.size > 1:
                sequence.gather_output(part.head)
        elif isinstance(part, ModelMixin) and find_family(type(part).__name__):
            backbone = backbone_of(part)
            blocks = backbone.blocks
            if config.recompute_blocks != "none":
                checkpoint_blocks(part, keeps_attention=keeps_attention)
            if sequence.size > 1:
                backbone.split_sequence(sequence)
        else:
            continue
        kernel = asked or fastest_kernel(backbone.kernels)
        for block in blocks:
            backbone.set_attention(block, kernel, sequence)
            if config.compile_blocks:
                block.compile(**compile_options)


def fastest_kernel(kernels: Sequence[AttentionKernel]) -> AttentionKernel:
    """Return the fastest of these kernels that this machine's GPU runs, `sdpa` where none does.

    FlashAttention 3 stays activated where it is chosen.
    """
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    for kernel in FASTEST_FIRST.get(major, ()):
        if kernel in kernels and refusal(kernel) is None:
            return kernel
    return "sdpa"


def demand_kernel(kernel: AttentionKernel) -> None:
    """Raise RuntimeError, which says what it needs, where this machine cannot run a kernel.

    Activates FlashAttention 3 in the whole process where that is asked for. torch's flash kernel
    also has a version for processors.
    """
    if kernel == "sdpa" or (kernel == "flash" and not torch.cuda.is_available()):
        return
    if (why := refusal(kernel)) is not None:
        raise RuntimeError(
            f"kernels.attention {kernel} needs {HINTS[kernel]}, and this machine says: {why}; give "
            "auto, which takes the fastest kernel that it has"
        )


def refusal(kernel: AttentionKernel) -> str | None:
    """Try a kernel forward and backward on a small sample; return why it fails, None if it runs."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    try:
        if kernel == "flash3":
            activate_flash_attention_impl("FA3")
        sample = torch.ones(
            1, 64, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        attend(sample, sample, sample, None, kernel).sum().backward()
    except (ImportError, RuntimeError) as error:
        if current_flash_attention_impl() is not None:
            restore_flash_attention_impl()
        return str(error).splitlines()[0]
    return None
