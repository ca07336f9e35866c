"""A window that slides over time: covering, holding, blending, and what is measured of it."""

import pytest
import torch
from torch import Tensor

from magicdistill.models.diffusion.flow import sigma_grid
from magicdistill.models.diffusion.long_video import (
    ContextWindows,
    coarse,
    continued,
    crossfade,
    match_colours,
    pulled,
    slide,
)
from magicdistill.models.diffusion.samplers import sample
from magicdistill.models.metrics.seams import SeamMeter
from magicdistill.models.networks.conditioning.conditions import Conditions

FIRST = torch.linspace(-0.5, 0.5, 3 * 32 * 32).view(1, 3, 1, 32, 32)


def null(prior: Tensor) -> Conditions:
    return Conditions.null(prior, num_tokens=1, text_dim=2, pooled_dim=2)


@pytest.mark.parametrize("total", [1, 16, 17, 18, 29, 30, 100])
@pytest.mark.parametrize("overlap", [1, 5, 13])
def test_windows_give_exactly_the_frames_that_are_asked_for(total: int, overlap: int) -> None:
    windows = ContextWindows(total, 17, overlap)
    calls = []

    def generate(start: Tensor, index: int) -> Tensor:
        calls.append(start.shape[2])
        return start[:, :, -1:].expand(-1, -1, 17, -1, -1)

    frames = torch.cat(list(slide(generate, FIRST, windows)), dim=2)
    assert frames.shape[2] == total
    assert calls == [1] + [overlap] * (windows.count - 1)
    assert len(windows.seams()) == windows.count - 1
    assert total <= 17 or windows.seams()[-1] + overlap < total


@pytest.mark.parametrize(("total", "overlap"), [(0, 1), (20, 0), (20, 2), (20, 17)])
def test_windows_that_cannot_be_are_refused(total: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="frame"):
        ContextWindows(total, 17, overlap)


@pytest.mark.parametrize("sampler", ["euler", "consistency"])
def test_known_latents_come_out_of_either_sampler_as_they_are(sampler) -> None:
    torch.manual_seed(0)
    known, noise = torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4, 5, 3, 3)
    seen = []

    def velocity(x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        seen.append((x[:, :, :2], sigma))
        return x.tanh()

    found = sample(
        continued(velocity, known),
        noise,
        sigma_grid(4, 5.0),
        null(known[:, :, :1]),
        sampler=sampler,
        fresh_noise=lambda step: noise,
    )
    torch.testing.assert_close(found[:, :, :2], known)
    for x, sigma in seen:  # the network sees them at the noise level of the others
        level = sigma.view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(x, (1 - level) * known + level * noise[:, :, :2])
    free = sample(velocity, noise, sigma_grid(4, 5.0), null(known[:, :, :1]), sampler=sampler,
                  fresh_noise=lambda step: noise)  # fmt: skip
    torch.testing.assert_close(found[:, :, 2:], free[:, :, 2:])


def test_a_crossfade_goes_in_equal_steps() -> None:
    before, after = torch.zeros(1, 3, 5, 4, 4), torch.ones(1, 3, 5, 4, 4)
    levels = crossfade(before, after)[0, 0, :, 0, 0]
    torch.testing.assert_close(levels, torch.arange(1, 6) / 6)


def test_colours_become_those_of_the_reference() -> None:
    tinted = 0.9 * FIRST.expand(-1, -1, 5, -1, -1) + 0.1
    torch.testing.assert_close(match_colours(tinted, FIRST), FIRST.expand_as(tinted))
    flat = torch.zeros(1, 3, 1, 32, 32)
    assert match_colours(flat, FIRST).isfinite().all()


def test_a_pull_moves_the_coarse_picture_and_leaves_detail() -> None:
    torch.manual_seed(0)
    detail = 0.1 * torch.randn(1, 3, 5, 32, 32)
    start = detail + 0.2
    torch.testing.assert_close(pulled(start, FIRST, 0.0), start)
    change = pulled(start, FIRST, 0.5) - start
    wanted = 0.5 * (coarse(FIRST) - coarse(start.mean(dim=2, keepdim=True)))
    torch.testing.assert_close(change, wanted.expand_as(change))


@pytest.mark.parametrize("pull", [0.0, 0.2])
def test_a_model_that_darkens_drifts_no_further_than_one_window(pull: float) -> None:
    def darken(start: Tensor, index: int) -> Tensor:
        fade = torch.linspace(1, 0.9, 17).view(-1, 1, 1)
        return start[:, :, -1:] * fade - (1 - fade)

    windows = ContextWindows(17 + 20 * 12, 17, 5)
    frames = torch.cat(list(slide(darken, FIRST, windows, pull=pull)), dim=2)
    assert (frames.mean((1, 3, 4)) - FIRST.mean()).abs().max() < 0.12
    lost = torch.cat([darken(FIRST * 0.9**i - (1 - 0.9**i), i) for i in range(20)], dim=2)
    assert (lost.mean((1, 3, 4)) - FIRST.mean()).abs().max() > 0.5


def test_the_meter_finds_a_jump_at_a_seam_and_a_drift() -> None:
    steps = torch.full((60,), 1 / 127.5)
    steps[0] = 0
    steps[28] = 10 / 127.5
    frames = FIRST + steps.cumsum(0).view(-1, 1, 1) - 0.3
    meter = SeamMeter([28], 1, per_second=10)
    for part in frames.split(7, dim=2):
        meter.add(part)
    found = meter.result()
    assert found.within == pytest.approx(1, rel=1e-3)
    assert found.seam == pytest.approx((10 + 1) / 2, rel=1e-3)
    assert found.seam_largest == pytest.approx(10, rel=1e-3)
    assert found.mean_drift == pytest.approx(50 + 9, rel=1e-3)
    assert found.std_drift == pytest.approx(0, abs=1e-2)
    assert found.sharpness == pytest.approx(1, rel=1e-3)
