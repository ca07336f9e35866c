from dataclasses import replace

import pytest
import torch

from magicdistill.models.diffusion.guidance import embedded, guide, guided
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.models.networks.weights import save_transformer
from magicdistill.models.objectives.config import GuidanceRange

SIGMA = torch.tensor([0.3, 0.8])


@pytest.fixture
def prompted(batch):
    """Conditions of a prompt beside the null ones of the batch."""
    return replace(batch.conditions, text=torch.randn(2, 2, 6), pooled=torch.randn(2, 6))


@pytest.fixture
def embedding(generator) -> VelocityModel:
    """A network with a guidance input that has an effect."""
    plain = generator.transformer
    return VelocityModel(type(plain).from_config(plain.config, guidance_embeds=True))


def test_scale_one_is_the_prompt_zero_the_null_and_more_extrapolates():
    c, u = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(guide(c, u, 1.0), c)
    assert torch.equal(guide(c, u, 0.0), u)
    each = guide(c, u, torch.tensor([2.0, 7.0]))
    torch.testing.assert_close(each[1:], u[1:] + 7 * (c[1:] - u[1:]))


def test_a_range_of_magic141_is_the_same_guidance_in_the_ho_form():
    low, high = GuidanceRange(min=0.0, max=5.0, form="magic141").ho
    assert (low, high) == (1.0, 6.0)
    c, u = torch.randn(2, 3, 1, 1, 1), torch.randn(2, 3, 1, 1, 1)
    torch.testing.assert_close(guide(c, u, high), (1 + 5.0) * c - 5.0 * u)
    assert GuidanceRange(min=2.0, max=5.0).ho == (2.0, 5.0)


@torch.no_grad()
def test_guidance_of_a_plain_network_is_one_doubled_forward(generator, batch, prompted):
    calls = []

    def network(x, sigma, conditions):
        calls.append(len(x))
        return generator(x, sigma, conditions)

    v = guided(network, 3.0, batch.conditions, embeds=False)(batch.x0, SIGMA, prompted)
    c, u = (generator(batch.x0, SIGMA, which) for which in (prompted, batch.conditions))
    torch.testing.assert_close(v, u + 3 * (c - u), atol=1e-5, rtol=1e-5)
    assert calls == [4]
    assert not torch.allclose(v, c)


def test_guidance_one_needs_no_null_prompt_and_another_scale_does(generator):
    assert guided(generator, 1.0, None, embeds=False) is generator
    with pytest.raises(ValueError, match="null"):
        guided(generator, 2.0, None, embeds=False)


@torch.no_grad()
def test_a_guidance_embedded_network_takes_a_thousand_times_the_scale(embedding, batch):
    scale = torch.tensor([1.0, 6.0])
    arguments = {}
    embedding.transformer.time_text_embed.register_forward_pre_hook(
        lambda module, inputs: arguments.update(guidance=inputs[2])
    )
    v = guided(embedding, scale, None, embeds=True)(batch.x0, SIGMA, batch.conditions)
    assert arguments["guidance"].tolist() == [1000.0, 6000.0]
    other = embedded(embedding, 1.0, embeds=True)(batch.x0, SIGMA, batch.conditions)
    torch.testing.assert_close(v[0], other[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(v[1], other[1])


def test_a_network_without_the_input_refuses_a_scale(generator, batch):
    with pytest.raises(ValueError, match="no guidance input"):
        generator(batch.x0, SIGMA, batch.conditions, torch.ones(2))


@torch.no_grad()
def test_a_fresh_guidance_input_changes_nothing_and_is_saved(generator, batch, tmp_path):
    plain = generator(batch.x0, SIGMA, batch.conditions)
    assert not generator.guidance_embeds
    generator.backbone.add_guidance()
    assert generator.guidance_embeds
    v = generator(batch.x0, SIGMA, batch.conditions, torch.tensor([2.0, 9.0]))
    torch.testing.assert_close(v, plain)
    save_transformer(generator.transformer, tmp_path, torch.float32)
    loaded = VelocityModel(load_transformer(tmp_path))
    again = loaded(batch.x0, SIGMA, batch.conditions, torch.tensor([2.0, 9.0]))
    torch.testing.assert_close(again, v)
