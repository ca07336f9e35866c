"""The blocks compute the same whichever way they are computed."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.hunyuan_video.network import (
    HunyuanVideo,
    concat_image_prior,
)
from magicdistill.models.networks.backbones.joint_attention import JointAttention, TextMask, attend
from magicdistill.models.networks.backbones.kept_attention import ATTENTION
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig
from magicdistill.models.networks.lora import lora_strength
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
    found = output_and_gradients(network, partial(HunyuanVideo(network).predict, inputs, lengths))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("lengths", "is_masked"), [((2, 2), False), ((4,), False), ((1, 3), True)])
def test_only_prompts_of_different_lengths_need_a_mask(lengths, is_masked):
    network = transformer()
    features = HunyuanVideo(network).double_stream(inputs_of(network, lengths), lengths)
    assert features.text.shape[1] == max(lengths)
    assert (features.mask is not None) == is_masked


def test_the_lengths_of_prompts_stay_on_the_host():
    mask = torch.arange(5) < torch.tensor([[2], [4], [1]])
    conditions = Conditions(torch.randn(3, 5, 6), mask, torch.randn(3, 6))
    assert conditions.text_lengths == (2, 4, 1)
    assert conditions[1:].text_lengths == (4, 1)
    assert conditions[torch.tensor([2, 0])].text_lengths == (1, 2)
    assert Conditions.cat([conditions, conditions[:1]]).text_lengths == (2, 4, 1, 2)
    assert conditions.to("meta").text_lengths == (2, 4, 1), "which has no values to read"


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_stands_in_the_padding_does_not_matter(kernel):
    q, k, v = torch.randn(3, 2, 6, 4, 8).unbind()
    mask = TextMask(torch.arange(4) < torch.tensor([[2], [4]]), (2, 4))
    out = attend(q, k, v, mask, kernel)
    k[0, 4:], v[0, 4:] = 1e3, 1e3
    changed = attend(q, k, v, mask, kernel)
    torch.testing.assert_close(changed[0, :4], out[0, :4])
    torch.testing.assert_close(changed[1], out[1])


class AttentionCounter(TorchDispatchMode):
    """Counts how often fused attention runs forwards."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._overloadpacket in ATTENTION
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [(5, 5), (1, 4, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_recomputed_blocks_give_the_same_gradients_to_the_bit(kernel, lengths):
    found, counts = {}, {}
    for recompute in ("none", "selective", "full"):
        network = transformer()
        inputs = inputs_of(network, lengths)
        set_kernels(network, KernelsConfig(attention=kernel, recompute_blocks=recompute))
        with AttentionCounter() as counter:
            found[recompute] = output_and_gradients(
                network, partial(HunyuanVideo(network).predict, inputs, lengths)
            )
        counts[recompute] = counter.count
    for recompute in ("selective", "full"):
        for ours, kept in zip(found[recompute], found["none"], strict=True):
            assert torch.equal(ours, kept), recompute
    assert counts["selective"] == counts["none"] < counts["full"]


def test_a_block_that_keeps_its_attention_is_recomputed_at_the_strength_of_its_forward(
    critic, batch
):
    trained = [p for p in critic.score.parameters() if p.requires_grad]
    found = []
    for recompute in ("none", "selective"):
        set_kernels(critic, KernelsConfig(recompute_blocks=recompute))
        with lora_strength(critic, 0.5):
            v = critic.score(batch.x0, torch.tensor([0.4, 0.7]), batch.conditions)
        found.append(torch.autograd.grad(v.square().sum(), trained))
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in found[0])


def test_compiled_blocks_cannot_keep_attention():
    with pytest.raises(ValueError, match="recompute_blocks selective"):
        KernelsConfig(compile_blocks=True, recompute_blocks="selective")


def test_the_discriminator_uses_the_kernels_too(critic):
    set_kernels(critic, KernelsConfig(attention="flash"))
    assert isinstance(critic.discriminator.block.attn.processor, JointAttention)


def test_the_image_prior_stands_at_latent_frame_zero():
    x, prior = torch.randn(1, 4, 3, 2, 2), torch.randn(1, 4, 1, 2, 2)
    joined = concat_image_prior(x, prior)
    assert torch.equal(joined[:, :4], x) and torch.equal(joined[:, 4:8, :1], prior)
    assert joined[:, 4:8, 1:].abs().sum() == 0
    assert joined[:, 8].flatten(2).mean(2).tolist() == [[1, 0, 0]]
