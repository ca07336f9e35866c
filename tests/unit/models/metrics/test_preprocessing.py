"""Resizing, cropping and normalising against PIL and closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image

from magicdistill.models.metrics import preprocessing
from magicdistill.models.metrics.preprocessing import CLIP, IMAGENET


def noise(height: int, width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=rng).to(torch.uint8)


def levels(images: torch.Tensor, colours: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in colours)
    return 255 * (images * std + mean)


def test_clips_become_eight_bit_frames() -> None:
    values = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).view(1, 1, -1, 1, 1)
    frames = preprocessing.to_frames(values.expand(2, 3, 5, 4, 6))
    assert frames.shape == (2, 5, 3, 4, 6) and frames.dtype == torch.uint8
    assert frames[0, :, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_the_i2v_subject_sees_what_pil_resizes_and_crops() -> None:
    frames = noise(360, 640) // 2 + 64  # PIL clips between its two passes; this stays inside
    found = levels(preprocessing.for_i2v_subject(frames), IMAGENET)
    image = Image.fromarray(frames[0].permute(1, 2, 0).numpy())
    wide = np.asarray(image.resize((455, 256), Image.Resampling.BICUBIC), dtype=np.float32)
    square = wide[16 : 16 + 224, 116 : 116 + 224]  # (455 - 224) / 2 = 115.5 rounds to even
    difference = (found[0].permute(1, 2, 0) - torch.from_numpy(square)).abs()
    assert difference.max() < 2 and difference.mean() < 0.5


def test_subject_consistency_keeps_the_aspect_and_does_not_antialias() -> None:
    """By half, bilinear interpolation is the mean of 2 x 2; by a quarter it skips the rest."""
    frames = noise(448, 896)
    found = levels(preprocessing.for_subject(frames), IMAGENET)
    blocks = torch.nn.functional.avg_pool2d(frames.float(), 2)
    torch.testing.assert_close(found, blocks, atol=1e-3, rtol=0)
    skipped = frames.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    found = levels(preprocessing.for_subject(skipped), IMAGENET)
    torch.testing.assert_close(found, blocks, atol=1e-3, rtol=0)


def test_clip_sees_the_centre() -> None:
    frames = torch.zeros(1, 3, 224, 424, dtype=torch.uint8)
    frames[..., 100:324] = 255
    found = levels(preprocessing.for_clip(frames), CLIP)
    assert found.shape == (1, 3, 224, 224) and found.min() > 254.9


@pytest.mark.parametrize(
    ("size", "expected"),
    [((200, 300), (200, 300)), ((544, 960), (290, 512)), ((960, 544), (512, 290))],
)
def test_musiq_sees_at_most_512(size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = preprocessing.for_musiq(noise(*size))
    assert found.shape[-2:] == expected and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("size", [(16, 32), (17, 30), (540, 960)])
def test_padding_reaches_the_multiple_from_both_sides(size: tuple[int, int]) -> None:
    left, right, top, bottom = preprocessing.padding(*size, multiple=16)
    assert (size[0] + top + bottom) % 16 == (size[1] + left + right) % 16 == 0
    assert 0 <= right - left <= 1 and 0 <= bottom - top <= 1
    assert top + bottom < 16 and left + right < 16
