"""A vision-language model of a published class, small and with random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tests.tiny_encoders import word_tokenizer

TEMPLATE = (
    "{% for turn in messages %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
SIDE, PATCH = 8, 4


def save_tiny_vlm(folder: Path, seed: int = 0) -> Path:
    """Write a Llava with its processor, which writes words of the test's prompts at random."""
    torch.manual_seed(seed)
    words: Any = word_tokenizer("<s>", "</s>")
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config: Any = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=SIDE, patch_size=PATCH, num_hidden_layers=2, **sizes
        ),
        text_config=LlamaConfig(
            vocab_size=len(words), num_hidden_layers=2, num_key_value_heads=2, **sizes
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    LlavaProcessor(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
