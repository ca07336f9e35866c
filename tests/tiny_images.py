"""Small models of images and texts with random weights, in folders as the large ones come."""

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

NUM_TOKENS, WIDTH = 16, 8
TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = TOWER | {"image_size": 8, "patch_size": 4, "projection_dim": WIDTH}
PROCESSOR = CLIPImageProcessorPil(
    size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_convert_rgb=True
)


def letters_tokenizer() -> CLIPTokenizer:
    """Build CLIP's tokenizer with an alphabet for a vocabulary."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=NUM_TOKENS)


def text_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return TOWER | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": NUM_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Save a CLIP whose both towers are random."""
    tokenizer = letters_tokenizer()
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=text_config(tokenizer), vision_config=VISION, projection_dim=WIDTH
    )
    for part in (CLIPModel(config), tokenizer, PROCESSOR):
        part.save_pretrained(folder)
    return folder


def save_pipeline(folder: Path) -> Path:
    """Save a Stable Diffusion for pictures of 32 x 32 pixels."""
    tokenizer = letters_tokenizer()
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    levels: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    parts: dict[str, Any] = {
        "safety_checker": None,
        "feature_extractor": None,
        "vae": AutoencoderKL(latent_channels=4, norm_num_groups=2, **levels),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text_config(tokenizer))),
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "requires_safety_checker": False,
    }
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def save_adapter(folder: Path, pipeline: Path) -> Path:
    """Save an IP-Adapter that fits a pipeline, with its image encoder beside it."""
    torch.manual_seed(2)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(
        folder / "image_encoder"
    )
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    weights = {
        "image_proj.proj.weight": torch.randn(4 * WIDTH, WIDTH),
        "image_proj.proj.bias": torch.zeros(4 * WIDTH),
        "image_proj.norm.weight": torch.ones(WIDTH),
        "image_proj.norm.bias": torch.zeros(WIDTH),
    }
    crossed = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(crossed):
        attention: Any = unet.get_submodule(name.removesuffix(".processor"))
        for kind, layer in (("k", attention.to_k), ("v", attention.to_v)):
            weight = torch.randn_like(layer.weight.detach())
            weights[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = weight
    save_file(weights, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"
