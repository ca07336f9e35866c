"""How the blocks of transformers are computed: attention kernels, compilation, split sequences."""

from functools import partial
from typing import Any

from diffusers import ModelMixin
from torch import nn
from torch.nn.attention import activate_flash_attention_impl

from magicdistill.models.networks.backbones.registry import backbone_of, find_family
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.models.networks.discriminator import Discriminator
from magicdistill.models.networks.lora import checkpoint_blocks, checkpointed
from magicdistill.models.networks.sequence_parallel import WHOLE_SEQUENCE, SequenceGroup


def set_kernels(
    module: nn.Module,
    config: KernelsConfig,
    sequence: SequenceGroup = WHOLE_SEQUENCE,
    **compile_options: Any,
) -> None:
    """Compute the blocks of all transformers and discriminators inside as the recipe asks.

    Outputs and gradients stay the same. Call once, before an engine wraps the module;
    `compile_options` go to torch.compile. Raises ValueError if a backbone has no such kernel or
    cannot share its sample in the sequence group, RuntimeError if FlashAttention 3 is asked for
    and missing.
    """
    if config.attention == "flash3":
        activate_flash3()
    keeps_attention = config.recompute_blocks == "selective"
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
        for block in blocks:
            backbone.set_attention(block, config.attention, sequence)
            if config.compile_blocks:
                block.compile(**compile_options)


def activate_flash3() -> None:
    """Make torch's flash attention use FlashAttention 3 in the whole process.

    Raises RuntimeError if it is not installed.
    """
    try:
        activate_flash_attention_impl("FA3")
    except ImportError as error:
        raise RuntimeError(
            f"kernels.attention flash3 needs FlashAttention 3 and a Hopper GPU ({error}): install "
            "flash_attn_interface, or choose flash, which torch brings along"
        ) from error
