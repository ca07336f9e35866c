"""Which folders of a pipeline of diffusers hold the encoders of prompts, without PyTorch."""

import json
from pathlib import Path

HUNYUAN_VIDEO = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
WAN = ("text_encoder", "tokenizer")


def is_wan(directory: Path) -> bool:
    """Tell whether a folder's text encoder is a UMT5, as Wan's is."""
    config = directory / "text_encoder" / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "umt5"


def image_folders(directory: Path) -> tuple[str, ...]:
    """Return the names of the folders that encode first frames beside a folder's prompts: CLIP of
    Wan, SigLIP of HunyuanVideo-1.5, and the preprocessing of HunyuanVideo-I2V's LLaVA."""
    config = directory / "text_encoder" / "config.json"
    kind = json.loads(config.read_text()).get("model_type", "") if config.is_file() else ""
    if kind.startswith("qwen2_5_vl"):
        return ("image_encoder", "feature_extractor")
    return ("image_encoder", "image_processor") if kind == "umt5" else ("image_processor",)


def encoder_folders(directory: Path) -> tuple[str, ...]:
    """Return the names of the folders that encode a prompt."""
    return WAN if is_wan(directory) else HUNYUAN_VIDEO
