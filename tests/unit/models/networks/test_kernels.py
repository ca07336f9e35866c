"""The choice of attention kernels where there is no GPU."""

from typing import Any, cast, get_args

import pytest
import torch

from magicdistill.models.networks.attention import (
    FASTEST_FIRST,
    HINTS,
    demand_kernel,
    fastest_kernel,
    set_kernels,
)
from magicdistill.models.networks.backbones.joint_attention import BACKENDS, JointAttention
from magicdistill.models.networks.config import AttentionKernel, KernelChoice, KernelsConfig
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from tests.tiny import tiny_shapes

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
KERNELS: tuple[AttentionKernel, ...] = get_args(AttentionKernel)


def test_every_kernel_has_a_backend_and_a_hint() -> None:
    fused = set(KERNELS) - {"sdpa"}
    assert BACKENDS.keys() == HINTS.keys() == fused
    assert {kernel for order in FASTEST_FIRST.values() for kernel in order} == fused
    assert set(get_args(KernelChoice)) == {"auto", *KERNELS}


@WITHOUT_GPU
@pytest.mark.parametrize("kernel", ["cudnn", "flash3"])
def test_a_missing_kernel_is_named_with_what_it_needs(kernel: AttentionKernel) -> None:
    network = VelocityModel(build_transformer(tiny_shapes()))
    with pytest.raises(RuntimeError, match=rf"kernels\.attention {kernel} needs .*give auto"):
        set_kernels(network, KernelsConfig(attention=kernel))


@WITHOUT_GPU
def test_auto_is_torchs_own_choice_without_a_gpu() -> None:
    network = VelocityModel(build_transformer(tiny_shapes()))
    set_kernels(network, KernelsConfig(attention="auto"))
    processors = [cast(Any, block).attn.processor for block in network.backbone.blocks]
    assert all(isinstance(p, JointAttention) and p.kernel == "sdpa" for p in processors)
    assert fastest_kernel(KERNELS) == "sdpa"
    demand_kernel("flash")  # torch has one for processors too
