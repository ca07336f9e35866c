"""Clips that are made small to be looked at."""

from pathlib import Path

import pytest
import torch

from magicdistill.data_pipeline.media.video import probe
from magicdistill.platform.inference.contact_sheets import SHOWN_PX, shrink, side_by_side


def test_small_clips_stay_and_large_ones_get_even_sides_and_keep_their_mean() -> None:
    small, large = torch.rand(1, 3, 2, 64, 64), torch.rand(1, 3, 2, 544, 960)
    assert torch.equal(shrink(small), small)
    found = shrink(large)
    assert found.shape == (1, 3, 2, 90, SHOWN_PX)
    assert found.mean().item() == pytest.approx(large.mean().item(), abs=1e-3)


def test_shrunk_clips_of_an_odd_shape_become_a_video(tmp_path: Path) -> None:
    clips = {name: shrink(torch.rand(1, 3, 3, 301, 533)) for name in ("real", "student")}
    side_by_side(tmp_path / "clips.mp4", clips, fps=24, zoom=1)
    found = probe(tmp_path / "clips.mp4")
    assert (found.width, found.num_frames) == (2 * SHOWN_PX, 9)
