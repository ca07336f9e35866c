"""Stock image-to-video pipelines of diffusers with small random weights, in folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny_images import VISION

LETTERS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
VOCABULARY = [*LETTERS, *((chr(code), -3.0) for code in range(ord("a"), ord("z") + 1))]
EYE: dict[str, Any] = {"image_size": 224, "patch_size": 112}
TEXT: dict[str, Any] = {
    "vocab_size": 256,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
}


def _tokenizer() -> T5Tokenizer:
    return T5Tokenizer(vocab=VOCABULARY, extra_ids=0, model_max_length=512)


def wan() -> Any:
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=36,
        out_channels=16, text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    stock: Any = WanImageToVideoPipeline
    return stock(
        tokenizer=_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**TEXT)),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )


def ltx() -> Any:
    blocks: Any = {
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
    }
    vae = AutoencoderKLLTXVideo(latent_channels=8, **blocks)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=16,
    )  # fmt: skip
    stock: Any = LTXImageToVideoPipeline
    return stock(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=T5EncoderModel(T5Config(**TEXT)),
        tokenizer=_tokenizer(),
        transformer=transformer,
    )


def cogvideox() -> Any:
    blocks: Any = (8, 8, 8, 8)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=blocks, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        sample_height=64, sample_width=64,
    )  # fmt: skip
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4,
        time_embed_dim=4, text_embed_dim=16, num_layers=1, sample_width=8, sample_height=8,
        sample_frames=9, max_text_seq_length=226, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    stock: Any = CogVideoXImageToVideoPipeline
    return stock(
        tokenizer=_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**TEXT)),
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )


def svd() -> Any:
    blocks: Any = {
        "block_out_channels": (32, 32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
    }
    vae = AutoencoderKLTemporalDecoder(latent_channels=4, **blocks)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8, num_attention_heads=(2, 4), addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24, num_frames=9,
    )  # fmt: skip
    stock: Any = StableVideoDiffusionPipeline  # whose types are of its own classes
    return stock(
        vae=vae,
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION | EYE)),
        unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction"),
        feature_extractor=CLIPImageProcessorPil(),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "ltx": ltx,
    "cogvideox": cogvideox,
    "svd": svd,
}


def save_stock_pipeline(name: str, folder: Path) -> Path:
    """Save one of PIPELINES; the same name has the same weights."""
    torch.manual_seed(0)
    PIPELINES[name]().save_pretrained(folder)
    return folder
