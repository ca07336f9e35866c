"""Pairs: one forward on the way from the pair's noise serves them and distribution matching."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from magicdistill.models.diffusion.flow import sigma_grid
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import rollout
from magicdistill.models.methods.magic import MagicMethod
from magicdistill.models.objectives.config import PairSupervision, SamplerConfig
from magicdistill.models.objectives.distribution_matching import DistributionMatching
from magicdistill.models.objectives.huber import pseudo_huber
from magicdistill.models.objectives.types import Pair

ONE_STEP = SamplerConfig(num_steps=1)
PAIRS = PairSupervision(num_cycles=5)


def magic(generator, critic, **changes) -> DistributionMatching:
    config = MagicMethod(**{"name": "magic", "sampler": ONE_STEP, "pairs": PAIRS} | changes)
    return DistributionMatching(config, generator, critic)


@pytest.fixture
def paired(batch):
    torch.manual_seed(4)
    return replace(batch, pair=Pair(torch.randn_like(batch.x0), torch.randn_like(batch.x0)))


def loss_of(method, batch, cycle=0):
    with method.prepared_for("generator"):
        return method.loss("generator", method.modules, batch, Rng(0, cycle, 5, batch.positions))


def test_the_weights_go_from_pairs_to_distribution_matching_in_a_line():
    found = [PAIRS.weights(cycle) for cycle in (0, 2, 4, 9)]
    assert found == [(1.0, 0.25), (0.625, 0.625), (0.25, 1.0), (0.25, 1.0)]


@torch.no_grad()
def test_the_generator_is_pulled_to_the_video_of_the_pairs_noise(generator, critic, paired):
    noise, video = paired.pair
    ones = torch.ones(2)
    x_hat = noise - generator(noise, ones, paired.conditions)
    expected = ((x_hat - video).square() + 1e-6).sqrt().mean() - 1e-3
    terms = loss_of(magic(generator, critic), paired).terms
    torch.testing.assert_close(terms["pairs"], expected)


def test_the_total_weighs_both_by_the_cycle(generator, critic, paired):
    for cycle, (pair_weight, dmd_weight) in {0: (1.0, 0.25), 4: (0.25, 1.0)}.items():
        loss = loss_of(magic(generator, critic, adversarial_weight=0.0), paired, cycle)
        expected = pair_weight * loss.terms["pairs"] + dmd_weight * loss.terms["dmd"]
        torch.testing.assert_close(loss.total.detach(), expected)


@pytest.mark.parametrize("share", [True, False])
def test_the_critic_sees_what_the_pairs_noise_gives_where_it_shares_the_rollout(
    generator, critic, paired, share
):
    method = magic(generator, critic, share_rollout=share)
    terms = []
    for batch in (paired, replace(paired, pair=None)):
        rng = Rng(0, len(terms) if share else 0, 0, batch.positions)
        terms.append(method.loss("critic", method.modules, batch, rng).terms["fake_score"])
    assert (terms[0] == terms[1]) != share
    assert method.shares_batch, "pairs are made for the generator's update alone"


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
def test_every_step_of_a_generator_is_pulled_to_the_video_of_the_pairs_noise(
    generator, critic, paired, share
):
    method = magic(generator, critic, sampler=SamplerConfig(), share_rollout=share)
    rng = next(
        rng for update in range(99)
        if (rng := Rng(0, 0, update, paired.positions)).grid_index(4) == 2
    )  # fmt: skip
    with method.prepared_for("generator"):
        found = method.loss("generator", method.modules, paired, rng).terms["pairs"]
    noise, video = paired.pair
    visits = rollout(generator, noise, sigma_grid(4, 5.0), paired.conditions, sampler="euler")
    torch.testing.assert_close(found, pseudo_huber(visits[2][2], video))


def test_a_batch_without_pairs_is_an_error(generator, critic, batch):
    with pytest.raises(ValueError, match=r"nothing makes pairs"):
        loss_of(magic(generator, critic), batch)


def test_a_sampler_that_leaves_the_way_to_the_pairs_video_is_refused():
    consistency = {"name": "consistency"}
    with pytest.raises(ValidationError, match=r"sampler\.name consistency.*use euler"):
        MagicMethod.model_validate({"name": "magic", "pairs": PAIRS, "sampler": consistency})
    assert magic_config(name="consistency", num_steps=1).pairs == PAIRS
    assert magic_config(num_steps=4).pairs == PAIRS


def magic_config(**sampler) -> MagicMethod:
    return MagicMethod.model_validate({"name": "magic", "pairs": PAIRS, "sampler": sampler})
