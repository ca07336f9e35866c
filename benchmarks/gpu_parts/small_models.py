"""Small models with random weights of the classes that the data stages load, in folders."""

import string
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from magicdistill.models.networks.conditioning.prompt_encoder import TEXT_TEMPLATE, PromptEncoder

PX, PATCH, WIDTH = 8, 4, 16
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
}
VISION: dict[str, Any] = SIZES | {"image_size": PX, "patch_size": PATCH}
IMAGES = CLIPImageProcessorPil(
    size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX}, do_convert_rgb=True
)
MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
CHAT = (
    "{% for turn in messages %}{% for part in turn['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


def save_clip(folder: Path) -> Path:
    """Save a CLIP with both towers, which reads letters."""
    tokenizer, text = clip_text()
    config: Any = CLIPConfig(
        text_config=text, vision_config=VISION | {"projection_dim": WIDTH}, projection_dim=WIDTH
    )
    for part in (CLIPModel(config), tokenizer, IMAGES):
        part.save_pretrained(folder)
    return folder


def save_text_to_image(folder: Path) -> Path:
    """Save a Stable Diffusion for pictures of 32 x 32 pixels."""
    tokenizer, text = clip_text()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    levels: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(latent_channels=4, norm_num_groups=2, **levels),
        "unet": unet,
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def save_captioner(folder: Path) -> Path:
    """Save a Llava with its processor, which writes words at random."""
    words: Any = tokenizer_of_llama()
    config: Any = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(vocab_size=len(words), **SIZES),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(PX // PATCH) ** 2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    processor = LlavaProcessor(
        IMAGES,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def save_encoders(folder: Path) -> Path:
    """Save the encoders of HunyuanVideo's prompts: a Llama and the text tower of a CLIP."""
    tokenizer, text = clip_text()
    words = tokenizer_of_llama()
    llama = LlamaModel(LlamaConfig(vocab_size=len(words), **SIZES))
    PromptEncoder(llama, words, CLIPTextModel(CLIPTextConfig(**text)), tokenizer).save(folder)
    return folder


def clip_text() -> tuple[CLIPTokenizer, dict[str, Any]]:
    """Return CLIP's tokenizer with an alphabet for a vocabulary, and the size of its text tower."""
    letters = string.ascii_lowercase
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    return tokenizer, SIZES | ends | {
        "vocab_size": len(words),
        "pad_token_id": ends["eos_token_id"],
    }


def tokenizer_of_llama() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters with the marks of Llama's chat format."""
    special = ["<pad>", "<unk>", "<s>", "</s>", *MARKS]
    characters = sorted({*string.printable, *TEXT_TEMPLATE.text})
    vocabulary = {word: number for number, word in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )
