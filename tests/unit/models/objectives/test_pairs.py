"""The 1-step stage: one forward from the pair's noise serves pairs and distribution matching."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.methods.magic import MagicMethod
from magicdistill.models.objectives.config import PairSupervision, SamplerConfig
from magicdistill.models.objectives.distribution_matching import DistributionMatching
from magicdistill.models.objectives.types import Pair

ONE_STEP = SamplerConfig(num_steps=1)
PAIRS = PairSupervision(num_cycles=5)


def magic(generator, critic, **changes) -> DistributionMatching:
    config = MagicMethod(name="magic", sampler=ONE_STEP, pairs=PAIRS, **changes)
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


def test_the_critic_sees_what_the_pairs_noise_gives(generator, critic, paired):
    method = magic(generator, critic)
    terms = [
        method.loss("critic", method.modules, batch, Rng(0, cycle, 0, batch.positions)).terms
        for cycle, batch in enumerate((paired, replace(paired, pair=None)))
    ]
    assert terms[0]["fake_score"] != terms[1]["fake_score"]


def test_a_batch_without_pairs_is_an_error(generator, critic, batch):
    with pytest.raises(ValueError, match=r"nothing makes pairs"):
        loss_of(magic(generator, critic), batch)


def test_pairs_are_for_one_step_alone():
    with pytest.raises(ValidationError, match=r"sampler\.num_steps 1"):
        MagicMethod(name="magic", pairs=PAIRS)
