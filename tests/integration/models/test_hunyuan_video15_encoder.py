"""Conditions of HunyuanVideo-1.5 are those that diffusers' pipeline makes of the same encoders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline
from PIL import Image
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from magicdistill.models.networks.conditioning.hunyuan_video15_encoder import (
    HunyuanVideo15Encoder,
)
from magicdistill.models.networks.conditioning.prompt_encoder import PromptEncoder

PROMPTS = ['A sign says "Open", another "Closed".', "A man talks."]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def encoders() -> dict:
    """Encoders of the published classes with random weights; bytes are the words of both."""
    torch.manual_seed(0)
    words = ByT5Tokenizer()
    words.chat_template = TEMPLATE
    sizes: Any = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    rope: Any = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    language = Qwen2_5_VLTextConfig(
        vocab_size=512, hidden_size=16, num_key_value_heads=2, rope_parameters=rope, **sizes
    )
    glyphs = T5Config(vocab_size=512, d_model=12, d_kv=6, num_heads=2, d_ff=16, num_layers=1)
    seen = SiglipVisionConfig(hidden_size=8, image_size=32, patch_size=16, **sizes)
    return {
        "text_encoder": Qwen2_5_VLTextModel(language).eval(),
        "tokenizer": words,
        "text_encoder_2": T5EncoderModel(glyphs).eval(),
        "tokenizer_2": ByT5Tokenizer(),
        "image_encoder": SiglipVisionModel(seen).eval(),
        "feature_extractor": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    }


def encoder_of(parts: dict) -> HunyuanVideo15Encoder:
    return HunyuanVideo15Encoder(*parts.values(), num_text_tokens=600, num_glyph_tokens=48)


@torch.no_grad()
def test_conditions_are_what_the_hunyuan15_pipeline_encodes(encoders: dict) -> None:
    picture = Image.effect_mandelbrot((48, 40), (-2, -1, 1, 1), 50).convert("RGB")
    pixels = torch.tensor(list(picture.tobytes())).view(40, 48, 3).permute(2, 0, 1)
    first = (pixels / 127.5 - 1)[None].expand(2, -1, -1, -1)
    found = encoder_of(encoders)(PROMPTS, first)
    pipeline: Any = HunyuanVideo15ImageToVideoPipeline
    assert found.text.shape == (2, 600, 16) and found.image_tokens is not None
    text, mask = pipeline._get_mllm_prompt_embeds(
        encoders["text_encoder"], encoders["tokenizer"], PROMPTS, torch.device("cpu"), 600
    )
    torch.testing.assert_close(found.text, text)
    assert torch.equal(found.text_mask, mask.bool())
    valid_first = found.text_mask.sort(dim=1, descending=True, stable=True).values
    assert torch.equal(found.text_mask, valid_first) and min(found.text_lengths) > 0
    words = encoders["tokenizer_2"]('Text "Open". Text "Closed". ').input_ids
    assert found.glyph_lengths == (len(words), 0)
    image = pipeline._get_image_embeds(
        encoders["image_encoder"], encoders["feature_extractor"], picture, torch.device("cpu")
    )
    torch.testing.assert_close(found.image_tokens[1:], image)


def test_a_folder_of_hunyuan15_is_loaded_by_its_own_encoder(encoders: dict, tmp_path: Path) -> None:
    encoder_of(encoders).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(encoders)
    sizes: Any = {"num_text_tokens": 600, "num_glyph_tokens": 48}
    loaded = PromptEncoder.load(tmp_path, torch.float32, **sizes)
    assert isinstance(loaded, HunyuanVideo15Encoder)
    null = loaded.null(2)
    torch.testing.assert_close(null.text, encoder_of(encoders)(["", ""]).text)
    assert null.image_tokens is None and null.glyph_lengths == (0, 0)
    (tmp_path / "tokenizer_2").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="lacks tokenizer_2"):
        PromptEncoder.load(tmp_path)
