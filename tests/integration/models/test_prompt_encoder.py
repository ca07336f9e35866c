from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from magicdistill.models.networks.conditioning.prompt_encoder import (
    IMAGE_TEMPLATE,
    TEXT_TEMPLATE,
    PromptEncoder,
    PromptTemplate,
)
from magicdistill.models.networks.int8 import weight_bytes
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from tests.tiny import tiny_shapes
from tests.tiny_encoders import PROMPTS, word_tokenizer

NUM_TOKENS, NUM_IMAGE_TOKENS, STRIDE = 16, 4, 2


def fitted(template: PromptTemplate, tokenizer: PreTrainedTokenizerFast) -> PromptTemplate:
    prefix = template.text.split("{}")[0]
    return PromptTemplate(template.text, len(tokenizer(prefix)["input_ids"]))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer("<|begin_of_text|>", "<|end_of_text|>")


@pytest.fixture(scope="module")
def clip_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer("<bos>", "<eos>")


@pytest.fixture(scope="module")
def llava(tokenizer) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config: Any = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=8, patch_size=4, num_hidden_layers=3, **sizes),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), num_hidden_layers=4, num_key_value_heads=2, **sizes
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_IMAGE_TOKENS,
    )
    config.pad_token_id = tokenizer.pad_token_id
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def clip(clip_tokenizer) -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=clip_tokenizer.eos_token_id,
    )
    return CLIPTextModel(config).eval()


@pytest.fixture(scope="module")
def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_convert_rgb=True
    )


@pytest.fixture(scope="module")
def options(tokenizer) -> dict:
    return {
        "num_text_tokens": NUM_TOKENS,
        "image_token_stride": STRIDE,
        "text_template": fitted(TEXT_TEMPLATE, tokenizer),
        "image_template": fitted(IMAGE_TEMPLATE, tokenizer),
    }


@pytest.fixture(scope="module")
def encoder(llava, tokenizer, clip, clip_tokenizer, image_processor, options) -> PromptEncoder:
    return PromptEncoder(llava.model, tokenizer, clip, clip_tokenizer, image_processor, **options)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(0, 256, (2, 3, 12, 16)) / 127.5 - 1


@pytest.fixture(scope="module")
def pictures(images) -> list[Image.Image]:
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


@pytest.fixture(scope="module")
def published(llava, tokenizer, clip, clip_tokenizer, image_processor):
    pipeline: Any = HunyuanVideoImageToVideoPipeline
    return pipeline(llava, tokenizer, None, None, None, clip, clip_tokenizer, image_processor)


def published_template(template: PromptTemplate) -> dict:
    return {
        "template": template.text,
        "crop_start": template.crop_start,
        "image_emb_len": NUM_IMAGE_TOKENS,
        "image_emb_start": 5,
        "image_emb_end": 5 + NUM_IMAGE_TOKENS,
    }


def assert_as_published(found, tokens, mask) -> None:
    """Compare valid tokens: what stands at the others never reaches the video."""
    mask = mask.bool()
    joined = torch.cat([found.image_tokens, found.text], dim=1)
    seen = torch.ones(found.image_tokens.shape[:2], dtype=torch.bool)
    assert torch.equal(torch.cat([seen, found.text_mask], dim=1), mask)
    torch.testing.assert_close(joined[mask], tokens[mask], atol=1e-5, rtol=1e-5)


def test_image_and_text_tokens_are_those_of_the_published_pipeline(
    encoder, published, images, pictures
):
    tokens, pooled, mask = published.encode_prompt(
        pictures,
        PROMPTS,
        prompt_template=published_template(encoder.image_template),
        max_sequence_length=NUM_TOKENS,
        image_embed_interleave=STRIDE,
        device=torch.device("cpu"),
    )
    found = encoder(PROMPTS, images)
    assert found.image_tokens.shape == (2, NUM_IMAGE_TOKENS // STRIDE, 16)
    assert_as_published(found, tokens.detach(), mask)
    torch.testing.assert_close(found.pooled, pooled.detach(), atol=1e-5, rtol=1e-5)


def test_a_prompt_that_is_too_long_is_cut_as_in_the_published_pipeline(
    encoder, published, images, pictures
):
    prompt = " ".join(PROMPTS * 3)
    tokens, _, mask = published.encode_prompt(
        pictures[:1],
        [prompt],
        prompt_template=published_template(encoder.image_template),
        max_sequence_length=NUM_TOKENS,
        image_embed_interleave=STRIDE,
        device=torch.device("cpu"),
    )
    assert_as_published(encoder([prompt], images[:1]), tokens.detach(), mask)


def test_text_alone_is_that_of_the_published_pipeline(encoder, llava, tokenizer, clip):
    pipeline: Any = HunyuanVideoPipeline
    published = pipeline(
        llava.model.language_model, tokenizer, None, None, None, clip, encoder.clip_tokenizer
    )
    tokens, _, mask = published.encode_prompt(
        PROMPTS,
        prompt_template={
            "template": encoder.text_template.text,
            "crop_start": encoder.text_template.crop_start,
        },
        max_sequence_length=NUM_TOKENS,
        device=torch.device("cpu"),
    )
    found = encoder(PROMPTS)
    assert found.image_tokens is None and found.text.shape == (2, NUM_TOKENS, 16)
    assert torch.equal(found.text_mask, mask.bool())
    valid = mask.bool()
    torch.testing.assert_close(found.text[valid], tokens.detach()[valid], atol=1e-5, rtol=1e-5)


def test_the_null_prompt_says_the_same_of_every_sample(encoder, images):
    null = encoder.null(2)
    assert torch.equal(null.text[0], null.text[1]) and torch.equal(null.pooled[0], null.pooled[1])
    assert not torch.allclose(null.pooled[0], encoder(PROMPTS[:1]).pooled[0])
    seeing = encoder.null(2, images)
    assert not torch.allclose(seeing.image_tokens[0], seeing.image_tokens[1])


def test_encoders_come_back_from_a_folder(encoder, llava, options, images, tmp_path):
    parts = {
        "text_encoder": llava,
        "tokenizer": encoder.tokenizer,
        "text_encoder_2": encoder.clip,
        "tokenizer_2": encoder.clip_tokenizer,
        "image_processor": encoder.image_processor,
    }
    with pytest.raises(FileNotFoundError, match="text_encoder, tokenizer"):
        PromptEncoder.load(tmp_path)
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    loaded = PromptEncoder.load(tmp_path, torch.float32, **options)
    found, expected = loaded(PROMPTS, images), encoder(PROMPTS, images)
    for name in ("text", "pooled", "image_tokens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_encoders_in_int8_are_smaller_and_come_back_from_a_folder(
    encoder, options, images, tmp_path
):
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    encoder.save(tmp_path / "full")
    full = PromptEncoder.load(tmp_path / "full", torch.bfloat16, **options)
    int8 = PromptEncoder.load(tmp_path / "full", int8=True, **options)
    int8.save(tmp_path / "int8")
    loaded = PromptEncoder.load(tmp_path / "int8", **options)
    assert weight_bytes(int8) == weight_bytes(loaded) < weight_bytes(full)
    files = (tmp_path / "int8").glob("text_encoder*/*.safetensors")
    stored = sum(part.nbytes for file in files for part in load_file(file).values())
    assert stored == weight_bytes(loaded)
    near, same, exact = (found(PROMPTS, images) for found in (int8, loaded, full))
    for name in ("text", "pooled", "image_tokens"):
        wanted = getattr(exact, name)
        assert torch.equal(getattr(near, name), getattr(same, name))
        assert (getattr(near, name) - wanted).square().mean() < 1e-2 * wanted.square().mean()


def test_what_llava_cannot_take_is_refused(encoder, llava, images):
    with pytest.raises(ValueError, match="<image>"):
        encoder(["an <image> of a man", "a man"], images)
    blind = PromptEncoder(
        llava.model.language_model, encoder.tokenizer, encoder.clip, encoder.clip_tokenizer
    )
    with pytest.raises(ValueError, match="HunyuanVideo-I2V"):
        blind(["a man", "a woman"], images)


@torch.no_grad()
def test_image_tokens_reach_the_video(encoder, images):
    torch.manual_seed(3)
    shapes = tiny_shapes(text_embed_dim=16, pooled_projection_dim=8, num_text_tokens=NUM_TOKENS)
    model, x = VelocityModel(build_transformer(shapes)), torch.randn(2, 4, 2, 4, 4)
    sigma, conditions = torch.tensor([0.5, 0.5]), encoder(PROMPTS, images)
    changed = conditions.map(lambda tensor: tensor)
    changed.image_tokens[0] += 1
    before, after = (model(x, sigma, c) for c in (encoder(PROMPTS, images), changed))
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])
