"""Prompts and first frames as conditions of Wan: tokens of UMT5, and of CLIP's view of an image."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    UMT5EncoderModel,
)

from magicdistill.models.locations import is_int8
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT, Conditions
from magicdistill.models.networks.int8 import encoder_arguments


class WanPromptEncoder(nn.Module):
    """Turns prompts, with or without first frames, into conditions; a drop-in `PromptEncoder`."""

    def __init__(
        self,
        text_encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        image_encoder: CLIPVisionModel | None = None,
        image_processor: CLIPImageProcessorPil | None = None,
        *,
        num_text_tokens: int = 512,
    ) -> None:
        """Take the loaded encoders; Wan 2.2 has none of images."""
        super().__init__()
        self.text_encoder, self.image_encoder = text_encoder.eval(), image_encoder
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.num_text_tokens = num_text_tokens

    @classmethod
    def load(
        cls, directory: Path | str, dtype: torch.dtype, *, int8: bool = False, **options: Any
    ) -> "WanPromptEncoder":
        """Load `text_encoder`, `tokenizer` and where they exist `image_encoder` and
        `image_processor` of a diffusers folder; `options` are those of the constructor.

        Raises FileNotFoundError naming what is missing.
        """
        root = Path(directory)
        if not (root / "tokenizer").is_dir():
            raise FileNotFoundError(f"{root} lacks tokenizer")
        image_encoder = image_processor = None
        if (root / "image_encoder").is_dir():
            image_encoder = CLIPVisionModel.from_pretrained(root / "image_encoder", dtype=dtype)
            image_processor = CLIPImageProcessorPil.from_pretrained(root / "image_processor")
        folder = root / "text_encoder"
        arguments: dict[str, Any] = {"dtype": dtype}
        if int8 or is_int8(folder):
            arguments = encoder_arguments(folder)
        return cls(
            UMT5EncoderModel.from_pretrained(folder, **arguments),
            AutoTokenizer.from_pretrained(root / "tokenizer"),
            image_encoder,
            image_processor,
            **options,
        )

    def save(self, directory: Path | str) -> None:
        """Write the folders that `load` reads."""
        parts: dict[str, Any] = {
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "image_encoder": self.image_encoder,
            "image_processor": self.image_processor,
        }
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(Path(directory) / name)

    @torch.no_grad()
    def forward(
        self, prompts: Sequence[str], images: Float[Tensor, "b 3 y x"] | None = None
    ) -> Conditions:
        """Encode prompts, with first frames in [-1, 1] where `images` are given.

        The text is what diffusers' pipeline makes of it, except that nothing repairs broken
        Unicode. The conditions are float32 and have no image prior.
        """
        tokens = self.tokenizer(
            [" ".join(html.unescape(html.unescape(prompt)).split()) for prompt in prompts],
            max_length=self.num_text_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        hidden = self.text_encoder(ids, mask).last_hidden_state.float()
        return Conditions(
            hidden * mask[:, :, None],
            mask.bool(),
            hidden.new_zeros(len(hidden), 0),
            image_tokens=None if images is None else self._image_tokens(images),
        )

    @property
    def sees_images(self) -> bool:
        """Whether it has an encoder of first frames."""
        return self.image_encoder is not None

    def null(self, batch: int, images: Float[Tensor, "b 3 y x"] | None = None) -> Conditions:
        """Encode the null prompt for `batch` samples: the empty one."""
        return self([NULL_PROMPT] * batch, images)

    def _image_tokens(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b m d"] | None:
        """Return CLIP's last hidden states but one; None without its encoder."""
        if self.image_encoder is None or self.image_processor is None:
            return None
        frames = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
        pixels = self.image_processor(list(frames), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.image_encoder.device, self.image_encoder.dtype)
        seen = self.image_encoder(pixels, output_hidden_states=True)
        return seen.hidden_states[-2].float()
