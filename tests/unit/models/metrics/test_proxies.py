"""Proxies of motion and flicker on clips whose answers are known."""

import pytest
import torch

from magicdistill.models.metrics.proxies import flicker_proxy, motion

GREY = 127.5


def clip(*changes: float) -> torch.Tensor:
    """Return one clip of 5 frames whose columns go up and down by these amounts."""
    columns = torch.tensor(changes).view(1, 1, 1, 1, -1)
    beat = torch.tensor([0.0, 1, 0, 1, 0]).view(1, 1, -1, 1, 1)
    return (columns * beat).expand(1, 3, 5, 4, -1)


def test_motion_is_the_mean_frame_difference_in_grey_levels() -> None:
    assert motion(clip(0.0, 0.1, 0.2, 0.3)).item() == pytest.approx(0.15 * GREY)


def test_flicker_looks_at_the_stiller_half_only() -> None:
    assert flicker_proxy(clip(0.0, 0.1, 0.8, 0.9)).item() == pytest.approx(0.05 * GREY)


def test_a_moving_face_before_a_still_wall_does_not_flicker() -> None:
    assert flicker_proxy(clip(0.0, 0.0, 0.0, 0.5)).item() == 0
