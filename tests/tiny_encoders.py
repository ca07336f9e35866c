"""Text encoders of the published classes, small and with random weights."""

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaModel,
    PreTrainedTokenizerFast,
)

from magicdistill.models.networks.conditioning.prompt_encoder import (
    IMAGE_TEMPLATE,
    TEXT_TEMPLATE,
    PromptEncoder,
)

HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]
PROMPTS = ["A man talks.", "The camera moves around a woman with short hair"]


WORDS, SYLLABLES = r"\n\n|\w+|[^\w\s]", r"\w{1,4}|[^\w\s]"


def word_tokenizer(start: str, end: str, pattern: str = WORDS) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words over the templates' and the prompts' own."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    texts = [TEXT_TEMPLATE.text, IMAGE_TEMPLATE.text, *PROMPTS]
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    special = ["<pad>", "<unk>", start, end, *HEADERS]
    vocabulary = {word: index for index, word in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(special)
    single = f"{start} $A {end}" if end == "<eos>" else f"{start} $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=end
    )


NUM_IMAGE_TOKENS = 4
"""Tokens of a first frame in the tiny LLaVA."""


def tiny_encoder(width: int, *, sees_images: bool = False) -> PromptEncoder:
    """Return a Llama, or a LLaVA that sees first frames, and a CLIP whose embeddings are `width`
    wide.

    Syllables make the template long enough for what the published one crops.
    """
    torch.manual_seed(0)
    words, clip_words = word_tokenizer("<s>", "</s>", SYLLABLES), word_tokenizer("<bos>", "<eos>")
    sizes: Any = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
    }
    llama = LlamaConfig(vocab_size=len(words), **sizes)
    eos: Any = clip_words.eos_token_id
    clip = CLIPTextConfig(vocab_size=len(clip_words), eos_token_id=eos, **sizes)
    pooled = CLIPTextModel(clip)
    if not sees_images:
        return PromptEncoder(LlamaModel(llama), words, pooled, clip_words)
    image: Any = words.convert_tokens_to_ids("<image>")
    config: Any = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=8, patch_size=4, **sizes),
        text_config=llama,
        image_token_index=image,
        image_seq_length=NUM_IMAGE_TOKENS,
    )
    config.pad_token_id = words.pad_token_id
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_convert_rgb=True
    )
    return PromptEncoder(LlavaModel(config), words, pooled, clip_words, processor)
