"""Pictures from texts by a real pipeline, and texts compared with pictures by a real CLIP."""

from pathlib import Path

import numpy as np
import pytest
import torch

from magicdistill.models.diffusion.image_prior import TextToImage
from magicdistill.models.networks.conditioning.clip import ImageTextEncoder
from tests.tiny_images import save_adapter, save_clip, save_pipeline

SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def painter(folder) -> TextToImage:
    return TextToImage.load(str(folder), torch.float32, "cpu")


def noise(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def paint(painter: TextToImage, prompt: str = "a face", seed: int = 0, **options) -> np.ndarray:
    return painter(prompt, SIZE, seed=seed, num_steps=2, **options)


def test_a_picture_is_a_function_of_prompt_and_seed(painter):
    first = paint(painter)
    assert first.shape == (*SIZE, 3)
    assert np.array_equal(first, paint(painter))
    assert not np.array_equal(first, paint(painter, seed=1))
    assert not np.array_equal(first, paint(painter, "a dog"))


def test_a_picture_has_the_video_s_aspect_and_the_pipeline_s_area(painter):
    assert painter.size(64, 64) == (32, 32)
    assert painter.size(544, 960) == SIZE


def test_without_an_adapter_the_nearest_reference_is_what_is_painted_over(painter):
    first = paint(painter, references=[noise(0), noise(1)], strength=0.5)
    assert first.shape == (*SIZE, 3)
    assert np.array_equal(first, paint(painter, references=[noise(0)], strength=0.5))
    assert not np.array_equal(first, paint(painter, references=[noise(1)], strength=0.5))
    assert not np.array_equal(first, paint(painter, references=[noise(0)], strength=1.0))


def test_an_adapter_sees_all_references(folder, tmp_path):
    adapter = save_adapter(tmp_path, folder)
    painter = TextToImage.load(str(folder), torch.float32, "cpu", adapter)
    references = [noise(seed) for seed in range(3)]
    all_of_them = paint(painter, references=references)
    assert not np.array_equal(all_of_them, paint(painter, references=references[:2]))
    assert np.array_equal(all_of_them, paint(painter, references=references))


def test_embeddings_have_length_one_whatever_the_picture_s_size(tmp_path):
    encoder = ImageTextEncoder.load(save_clip(tmp_path))
    pictures = [noise(0, 20, 30), noise(1, 64, 9)]
    images = encoder.images(pictures)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(images[1:], encoder.images(pictures[1:]))
    texts = encoder.texts(["a face", "a long text " * 20])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(texts[:1], encoder.texts(["a face"]))


def test_a_folder_that_is_no_clip_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ImageTextEncoder.load(tmp_path)
    with pytest.raises(ValueError, match="does not embed both"):
        ImageTextEncoder.load(folder / "text_encoder")
