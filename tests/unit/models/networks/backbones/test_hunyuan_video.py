"""The blocks compute the same whichever way they are computed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.hunyuan_video_network import (
    HunyuanVideo,
    concat_image_prior,
)
from magicdistill.models.networks.backbones.joint_attention import JointAttention, TextMask, attend
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig
from magicdistill.models.networks.transformer import build_transformer
from tests.tiny import tiny_shapes

TINY = tiny_shapes(num_attention_heads=4, num_single_layers=2, num_text_tokens=5)
KERNELS: list[AttentionKernel] = ["sdpa", "flash"]


def transformer():
    torch.manual_seed(0)
    return build_transformer(TINY)


def inputs_of(network, lengths: tuple[int, ...]) -> dict:
    torch.manual_seed(1)
    batch = len(lengths)
    conditions = Conditions(
        text=torch.randn(batch, 5, 6),
        text_mask=torch.arange(5) < torch.tensor(lengths)[:, None],
        pooled=torch.randn(batch, 6),
        image_prior=torch.randn(batch, 4, 1, 4, 8),
    )
    x_sigma = torch.randn(batch, 4, 3, 4, 8, requires_grad=True)
    return HunyuanVideo(network).inputs(x_sigma, torch.rand(batch), conditions)


def output_and_gradients(network, call: Callable[[], Tensor]) -> list[Tensor]:
    torch.manual_seed(2)
    output = call()
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad((output * torch.randn_like(output)).sum(), parameters)]


def masked(network, inputs: dict) -> list[Tensor]:
    """diffusers' own forward: padding stays, and a dense mask hides it."""
    return output_and_gradients(network, lambda: network(**inputs, return_dict=False)[0])


@pytest.mark.parametrize("lengths", [(5, 5), (2, 2), (3,), (1, 4, 2)])
@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_dropping_padding_equals_masking_it(kernel, lengths):
    network = transformer()
    inputs = inputs_of(network, lengths)
    expected = masked(network, inputs)
    if kernel:
        set_kernels(network, KernelsConfig(attention=kernel))
    found = output_and_gradients(network, lambda: HunyuanVideo(network).predict(inputs, lengths))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("lengths", "is_masked"), [((2, 2), False), ((4,), False), ((1, 3), True)])
def test_only_prompts_of_different_lengths_need_a_mask(lengths, is_masked):
    network = transformer()
    features = HunyuanVideo(network).double_stream(inputs_of(network, lengths), lengths)
    assert features.text.shape[1] == max(lengths)
    assert (features.mask is not None) == is_masked


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_stands_in_the_padding_does_not_matter(kernel):
    q, k, v = torch.randn(3, 2, 6, 4, 8).unbind()
    mask = TextMask(torch.arange(4) < torch.tensor([[2], [4]]), (2, 4))
    out = attend(q, k, v, mask, kernel)
    k[0, 4:], v[0, 4:] = 1e3, 1e3
    changed = attend(q, k, v, mask, kernel)
    torch.testing.assert_close(changed[0, :4], out[0, :4])
    torch.testing.assert_close(changed[1], out[1])


def test_the_discriminator_uses_the_kernels_too(critic):
    set_kernels(critic, KernelsConfig(attention="flash"))
    assert isinstance(critic.discriminator.block.attn.processor, JointAttention)


def test_the_image_prior_stands_at_latent_frame_zero():
    x, prior = torch.randn(1, 4, 3, 2, 2), torch.randn(1, 4, 1, 2, 2)
    joined = concat_image_prior(x, prior)
    assert torch.equal(joined[:, :4], x) and torch.equal(joined[:, 4:8, :1], prior)
    assert joined[:, 4:8, 1:].abs().sum() == 0
    assert joined[:, 8].flatten(2).mean(2).tolist() == [[1, 0, 0]]
