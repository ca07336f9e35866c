"""Prompts and first frames as conditions of HunyuanVideo-1.5: Qwen2.5-VL, ByT5 and SigLIP."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLTextModel,
    SiglipImageProcessorPil,
    SiglipVisionModel,
    T5EncoderModel,
)

from magicdistill.models.locations import is_int8
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT, Conditions
from magicdistill.models.networks.int8 import encoder_arguments


def is_hunyuan_video15(directory: Path) -> bool:
    """Tell whether a folder's text encoder is a Qwen2.5-VL, as HunyuanVideo-1.5's is."""
    config = directory / "text_encoder" / "config.json"
    kind = json.loads(config.read_text()).get("model_type", "") if config.is_file() else ""
    return kind.startswith("qwen2_5_vl")


class HunyuanVideo15Encoder(nn.Module):
    """Turns prompts, with or without first frames, into conditions; a drop-in `PromptEncoder`.

    Template, crop and the search for quoted words are those of diffusers' pipeline, whose own
    functions run here.
    """

    def __init__(
        self,
        language: Qwen2_5_VLTextModel,
        tokenizer: PreTrainedTokenizerBase,
        byt5: T5EncoderModel,
        byt5_tokenizer: ByT5Tokenizer,
        siglip: SiglipVisionModel | None = None,
        image_processor: SiglipImageProcessorPil | None = None,
        *,
        num_text_tokens: int = 1000,
        num_glyph_tokens: int = 256,
    ) -> None:
        """Take the loaded encoders; without SigLIP first frames have no tokens."""
        super().__init__()
        self.language, self.byt5 = language.eval(), byt5.eval()
        self.siglip = None if siglip is None else siglip.eval()
        self.tokenizer, self.byt5_tokenizer = tokenizer, byt5_tokenizer
        self.tokenizer.padding_side = "right"  # the template's beginning is cropped
        self.image_processor = image_processor
        self.num_text_tokens, self.num_glyph_tokens = num_text_tokens, num_glyph_tokens

    @classmethod
    def load(
        cls,
        directory: Path | str,
        dtype: torch.dtype = torch.float16,
        *,
        int8: bool = False,
        **options: Any,
    ) -> "HunyuanVideo15Encoder":
        """Load the encoders of a diffusers folder; `options` are those of the constructor.

        The folder has `text_encoder`, `tokenizer`, `text_encoder_2` and `tokenizer_2`, and to see
        first frames `image_encoder` and `feature_extractor`.
        With `int8` Qwen2.5-VL holds eight-bit weights, and so does one that was saved that way.
        Raises FileNotFoundError naming what is missing, and ModuleNotFoundError without torchao.
        """
        root = Path(directory)
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        if missing := [name for name in names if not (root / name).is_dir()]:
            raise FileNotFoundError(f"{root} lacks {', '.join(missing)}")
        folder, siglip, processor = root / "text_encoder", None, None
        if (root / "image_encoder").is_dir():
            siglip = SiglipVisionModel.from_pretrained(root / "image_encoder", dtype=dtype)
            processor = SiglipImageProcessorPil.from_pretrained(root / "feature_extractor")
        own: dict[str, Any] = {"dtype": dtype}
        arguments = encoder_arguments(folder) if int8 or is_int8(folder) else own
        return cls(
            Qwen2_5_VLTextModel.from_pretrained(folder, **arguments),
            AutoTokenizer.from_pretrained(root / "tokenizer"),
            T5EncoderModel.from_pretrained(root / "text_encoder_2", dtype=dtype),
            ByT5Tokenizer.from_pretrained(root / "tokenizer_2"),
            siglip,
            processor,
            **options,
        )

    @torch.no_grad()
    def forward(
        self, prompts: Sequence[str], images: Float[Tensor, "b 3 y x"] | None = None
    ) -> Conditions:
        """Encode prompts, with first frames in [-1, 1] of any size where `images` are given.

        The conditions are float32 and have no image prior, which is the VAE's work.
        """
        pipeline: Any = HunyuanVideo15ImageToVideoPipeline  # whose types are of its own classes
        device = self.language.device
        text, mask = pipeline._get_mllm_prompt_embeds(
            self.language, self.tokenizer, list(prompts), device, self.num_text_tokens
        )
        glyphs, glyph_mask = pipeline._get_byt5_prompt_embeds(
            self.byt5_tokenizer, self.byt5, list(prompts), device, self.num_glyph_tokens
        )
        return Conditions(
            text.float(),
            mask.bool(),
            text.new_zeros(len(text), 0, dtype=torch.float32),
            image_tokens=None if images is None else self._image_tokens(images),
            glyphs=glyphs.float(),
            glyph_mask=glyph_mask.bool(),
        )

    def save(self, directory: Path | str) -> None:
        """Write the folders that `load` reads."""
        parts: dict[str, Any] = {
            "text_encoder": self.language,
            "tokenizer": self.tokenizer,
            "text_encoder_2": self.byt5,
            "tokenizer_2": self.byt5_tokenizer,
            "image_encoder": self.siglip,
            "feature_extractor": self.image_processor,
        }
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(Path(directory) / name)

    @property
    def sees_images(self) -> bool:
        """Whether it has an encoder of first frames."""
        return self.siglip is not None

    def null(self, batch: int, images: Float[Tensor, "b 3 y x"] | None = None) -> Conditions:
        """Encode the null prompt for `batch` samples: the empty one, in the same template."""
        return self([NULL_PROMPT] * batch, images)

    def _image_tokens(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b m i"] | None:
        if self.siglip is None or self.image_processor is None:
            return None
        frames = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
        pipeline: Any = HunyuanVideo15ImageToVideoPipeline
        return pipeline._get_image_embeds(
            self.siglip, self.image_processor, list(frames), self.siglip.device
        ).float()
