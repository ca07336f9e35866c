"""Prompts and first frames of Wan are encoded as diffusers' pipeline encodes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from magicdistill.data_pipeline.stages.embed import encoder_fingerprint
from magicdistill.models.networks.autoencoder.vae import build_autoencoder
from magicdistill.models.networks.autoencoder.wan import WanVaeConfig
from magicdistill.models.networks.conditioning.prompt_encoder import PromptEncoder
from magicdistill.models.networks.conditioning.wan_encoder import WanPromptEncoder
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from tests.tiny import tiny_wan, tiny_wan_inputs
from tests.tiny_encoders import PROMPTS, word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Encoders of the published classes, small and with random weights."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer("<bos>", "<eos>")
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=6, d_kv=4, d_ff=8, num_layers=2, num_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=6,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    path = tmp_path_factory.mktemp("encoders")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    WanPromptEncoder(UMT5EncoderModel(text), tokenizer, CLIPVisionModel(vision), processor).save(
        path
    )
    return path


@torch.no_grad()
def test_text_and_image_tokens_equal_those_of_the_pipeline(folder: Path, monkeypatch) -> None:
    encoder = PromptEncoder.load(folder, torch.float32)
    assert isinstance(encoder, WanPromptEncoder)
    stock: Any = WanImageToVideoPipeline  # whose types are of its own classes
    pipeline = stock(
        tokenizer=encoder.tokenizer,
        text_encoder=encoder.text_encoder,
        vae=build_autoencoder(WanVaeConfig(base_dim=4, num_res_blocks=1)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        image_processor=encoder.image_processor,
        image_encoder=encoder.image_encoder,
    )
    module = "diffusers.pipelines.wan.pipeline_wan_i2v.prompt_clean"
    monkeypatch.setattr(module, str.strip)  # its own needs ftfy, which repairs broken Unicode
    expected, _ = pipeline.encode_prompt(
        PROMPTS, do_classifier_free_guidance=False, max_sequence_length=512
    )
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    seen = pipeline.encode_image(Image.fromarray(pixels), "cpu")
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].repeat(2, 1, 1, 1) / 127.5 - 1
    found = encoder(PROMPTS, images)
    torch.testing.assert_close(found.text, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.image_tokens, seen.repeat(2, 1, 1), atol=1e-4, rtol=1e-4)
    assert found.pooled.shape == (2, 0) and found.text.shape == (2, 512, 6)


def test_the_network_takes_what_the_encoder_gives(folder: Path) -> None:
    encoder = PromptEncoder.load(folder, torch.float32, num_text_tokens=16)
    model = VelocityModel(build_transformer(tiny_wan(image_dim=6)))
    x, sigma, _ = tiny_wan_inputs()
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    with_images, without = encoder(PROMPTS, images), encoder.null(2)
    assert with_images.text.shape == without.text.shape == (2, 16, 6)
    assert without.image_tokens is None
    assert (model(x, sigma, with_images) - model(x, sigma, without)).abs().max() > 1e-4


def test_a_folder_of_wan_is_known_by_its_two_folders(folder: Path, tmp_path: Path) -> None:
    assert len(encoder_fingerprint(folder)) == 16
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text('{"model_type": "umt5"}')
    with pytest.raises(FileNotFoundError, match=r"no folder tokenizer$"):
        encoder_fingerprint(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks tokenizer"):
        PromptEncoder.load(tmp_path)
