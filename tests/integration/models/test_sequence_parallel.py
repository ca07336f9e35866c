"""Split over 1, 2 and 4 gloo ranks, the networks give what they give unsplit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, multiprocessing, nn

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig, LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import checkpoint_blocks, lora_strength
from magicdistill.models.networks.sequence_parallel import SequenceGroup, join_sequence_group
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from tests.tiny import tiny_shapes, tiny_wan
from tests.tiny15 import tiny15_conditions, tiny15_shapes

NUM_RANKS = 4
SIZES = (1, 2, 4)
SHAPES = tiny_shapes(num_attention_heads=4, num_single_layers=2, num_text_tokens=5)
SIGMA = torch.tensor([0.4, 0.7])
Prepare = Callable[[nn.Module], None]
"""Installs the kernels of a scenario, split over the group that is being tested."""


def inputs(*lengths: int) -> tuple[Tensor, Conditions]:
    """24 video tokens, 8 for a latent frame: with 4 ranks no share ends where a frame ends."""
    torch.manual_seed(1)
    conditions = Conditions(
        text=torch.randn(2, 5, 6),
        text_mask=torch.arange(5) < torch.tensor(lengths)[:, None],
        pooled=torch.randn(2, 6),
        image_prior=torch.randn(2, 4, 1, 4, 8),
    )
    return torch.randn(2, 4, 3, 4, 8, requires_grad=True), conditions


def critic(shapes: BackboneConfig = SHAPES) -> Critic:
    """A critic whose LoRA is not zero and whose base recomputes its blocks."""
    torch.manual_seed(0)
    network = Critic(build_transformer(shapes), LoraConfig(rank=2), adversarial=True)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    checkpoint_blocks(network.score.transformer)
    return network


def with_gradients(output: Tensor, network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output and the gradients of a scalar that weighs all of it."""
    torch.manual_seed(2)
    leaves = [x, *(p for p in network.parameters() if p.requires_grad)]
    scalar = (output * torch.randn_like(output)).sum()
    gradients = torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True)
    return [output.detach(), *gradients]


def velocity(prepare: Prepare, lengths: Sequence[int], condition: str) -> list[Tensor]:
    torch.manual_seed(0)
    arguments = SHAPES.arguments()
    if condition == "token_replace":
        arguments |= {"image_condition_type": condition, "in_channels": SHAPES.latent_channels}
    network = VelocityModel(HunyuanVideoTransformer3DModel(**arguments))
    prepare(network)
    x, conditions = inputs(*lengths)
    return with_gradients(network(x, SIGMA, conditions), network, x)


def image_to_video(prepare: Prepare) -> list[Tensor]:
    return velocity(prepare, (3, 3), "latent_concat")


def prompts_of_different_lengths(prepare: Prepare) -> list[Tensor]:
    return velocity(prepare, (2, 5), "latent_concat")


def first_frame_replaced(prepare: Prepare) -> list[Tensor]:
    return velocity(prepare, (3, 3), "token_replace")


def real_and_fake_score(prepare: Prepare) -> list[Tensor]:
    network = critic()
    prepare(network)
    x, conditions = inputs(3, 3)
    with lora_strength(network, torch.tensor([0.25, 1.0])):
        v = network.score(x, SIGMA, conditions)
    return with_gradients(v, network, x)


def discriminator(prepare: Prepare) -> list[Tensor]:
    network = critic()
    prepare(network)
    x, conditions = inputs(2, 5)
    return with_gradients(network.logits(x, SIGMA, conditions), network, x)


def generator_through_the_critic(prepare: Prepare) -> list[Tensor]:
    """The generator's turn: its output enters the critic and, beside it, a regression."""
    judge = critic()
    torch.manual_seed(3)
    generator = VelocityModel(build_transformer(SHAPES))
    checkpoint_blocks(generator.transformer, keeps_attention=True)
    prepare(nn.ModuleList([judge, generator]))
    x, conditions = inputs(3, 3)
    x_hat = x - generator(x, torch.ones(2), conditions)
    logits = judge.logits(x_hat, SIGMA, conditions)
    output = torch.cat([logits.flatten(), x_hat.square().flatten()])
    return with_gradients(output, generator, x)


def wan(prepare: Prepare) -> list[Tensor]:
    torch.manual_seed(0)
    network = VelocityModel(build_transformer(tiny_wan(image_dim=6)))
    prepare(network)
    x, conditions = inputs(2, 5)
    tokens = replace(conditions, image_tokens=torch.randn(2, 3, 6))
    return with_gradients(network(x, SIGMA, tokens), network, x)


def discriminator_of_wan(prepare: Prepare) -> list[Tensor]:
    network = critic(tiny_wan())
    prepare(network)
    x, conditions = inputs(2, 5)
    with lora_strength(network, torch.tensor([0.25, 1.0])):
        v = network.score(x, SIGMA, conditions)
        logits = network.logits(x, SIGMA, conditions)
    return with_gradients(torch.cat([logits.flatten(), v.flatten()]), network, x)


def inputs15() -> tuple[Tensor, Conditions]:
    """24 video tokens, and conditions of all kinds, of which one sample has no quoted words."""
    torch.manual_seed(1)
    conditions = tiny15_conditions((2, 5), (3, 0), num_image=3)
    return torch.randn(2, 4, 3, 2, 4, requires_grad=True), conditions


def hunyuan15_image_to_video(prepare: Prepare) -> list[Tensor]:
    torch.manual_seed(0)
    network = VelocityModel(build_transformer(tiny15_shapes()))
    prepare(network)
    x, conditions = inputs15()
    return with_gradients(network(x, SIGMA, conditions), network, x)


def hunyuan15_discriminator(prepare: Prepare) -> list[Tensor]:
    network = critic(tiny15_shapes())
    prepare(network)
    x, conditions = inputs15()
    return with_gradients(network.logits(x, SIGMA, conditions), network, x)


SCENARIOS = (
    image_to_video,
    prompts_of_different_lengths,
    first_frame_replaced,
    real_and_fake_score,
    discriminator,
    generator_through_the_critic,
    wan,
    discriminator_of_wan,
    hunyuan15_image_to_video,
    hunyuan15_discriminator,
)


def refusals(sequence: SequenceGroup) -> list[str]:
    """Return what a group of 4 says to 3 video tokens, and to 3 heads."""
    network = build_transformer(SHAPES)
    set_kernels(network, KernelsConfig(), sequence)
    too_few = build_transformer(SHAPES.model_copy(update={"num_attention_heads": 3}))
    calls = (
        lambda: network.x_embedder(torch.zeros(1, 9, 3, 2, 2)),
        lambda: set_kernels(too_few, KernelsConfig(), sequence),
    )
    messages = []
    for call in calls:
        with pytest.raises(ValueError) as refused:
            call()
        messages.append(str(refused.value))
    return messages


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_RANKS
    )
    found = {}
    for size in SIZES:
        sequence = join_sequence_group(size)

        def prepare(network: nn.Module, sequence: SequenceGroup = sequence) -> None:
            set_kernels(network, KernelsConfig(attention="flash"), sequence)

        for scenario in SCENARIOS:
            found[scenario.__name__, size] = scenario(prepare)
    found["refusals"] = refusals(sequence)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[Any, list]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload([__name__])  # one process imports for all ranks
    multiprocessing.start_processes(
        run_rank, (folder,), nprocs=NUM_RANKS, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(NUM_RANKS)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_split_equals_unsplit(scenario, size, found):
    output, *gradients = scenario(lambda network: None)
    ranks = [rank[scenario.__name__, size] for rank in found]
    for found_output, *_ in ranks:
        torch.testing.assert_close(found_output, output, atol=1e-5, rtol=1e-5)
    means = [torch.stack(parts).mean(0) for parts in zip(*(r[1:] for r in ranks), strict=True)]
    torch.testing.assert_close(means, gradients, atol=2e-5, rtol=1e-4)


def test_what_does_not_divide_is_refused_with_what_would(found):
    assert found[0]["refusals"] == [
        "3 video tokens do not divide over cluster.sequence_parallel 4: choose one of [1, 3]",
        "3 attention heads do not divide over cluster.sequence_parallel 4: choose one of [1, 3]",
    ]
