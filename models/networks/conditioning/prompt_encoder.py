"""Prompts and first frames as conditions: LLaVA-Llama-3 tokens and a pooled CLIP embedding.

Two layouts of diffusers folders: HunyuanVideo, whose text encoder is a Llama, and
HunyuanVideo-I2V, whose LLaVA also sees the first frame (multi-modal guidance, 003 section 3).
Templates and crops are the public ones, taken from diffusers. Papers are numbered as in
docs/method.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.hunyuan_video import (
    pipeline_hunyuan_video,
    pipeline_hunyuan_video_image2video,
)
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPTextModel,
    LlamaModel,
    LlavaConfig,
    LlavaModel,
    PreTrainedTokenizerBase,
)

from magicdistill.models.locations import is_int8
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT, Conditions
from magicdistill.models.networks.conditioning.encoder_folders import is_wan
from magicdistill.models.networks.conditioning.hunyuan_video15_encoder import (
    HunyuanVideo15Encoder,
    is_hunyuan_video15,
)
from magicdistill.models.networks.conditioning.wan_encoder import WanPromptEncoder
from magicdistill.models.networks.int8 import encoder_arguments

SKIPPED_LAYERS = 2
"""Last layers of the language model that are skipped: the transformer reads the hidden states
before them."""
NUM_CLIP_TOKENS = 77
"""Tokens that CLIP's prompts are padded or cut to, the longest that it takes."""
END_OF_HEADER = "<|end_header_id|>"
"""Token that ends the header of each turn in Llama 3's chat format."""
NUM_HEADERS = 3
"""Headers of a prompt: system, user and assistant. A long prompt pushes the last one out."""
ASSISTANT_TOKENS = 4
"""Tokens of the assistant's header, which are cut out of the text tokens: <|eot_id|>
<|start_header_id|> assistant <|end_header_id|>."""


@dataclass(frozen=True)
class PromptTemplate:
    """The text around a prompt, and where the prompt starts in it."""

    text: str
    """The template, with `{}` where the prompt goes."""
    crop_start: int
    """Number of tokens before the prompt, of which the image is one; they are cut off."""


TEXT_TEMPLATE = PromptTemplate(
    pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["template"],
    pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["crop_start"],
)
IMAGE_TEMPLATE = PromptTemplate(
    pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE["template"],
    pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE["crop_start"],
)


class PromptEncoder(nn.Module):
    """Turns prompts, with or without first frames, into conditions."""

    def __init__(
        self,
        language: LlavaModel | LlamaModel,
        tokenizer: PreTrainedTokenizerBase,
        clip: CLIPTextModel,
        clip_tokenizer: PreTrainedTokenizerBase,
        image_processor: CLIPImageProcessorPil | None = None,
        *,
        num_text_tokens: int = 256,
        image_token_stride: int = 2,
        text_template: PromptTemplate = TEXT_TEMPLATE,
        image_template: PromptTemplate = IMAGE_TEMPLATE,
    ) -> None:
        """Take the loaded encoders and their tokenizers; `image_processor` is LLaVA's.

        Of the image tokens every `image_token_stride`-th is kept: 2 is right where the image prior
        enters by channels, 4 where it replaces the first frame.
        """
        super().__init__()
        self.language, self.clip = language.eval(), clip.eval()
        self.tokenizer, self.clip_tokenizer = tokenizer, clip_tokenizer
        self.image_processor = image_processor
        self.num_text_tokens, self.image_token_stride = num_text_tokens, image_token_stride
        self.text_template, self.image_template = text_template, image_template

    @classmethod
    def load(
        cls,
        directory: Path | str,
        dtype: torch.dtype = torch.float16,
        *,
        int8: bool = False,
        **options: Any,
    ) -> "AnyPromptEncoder":
        """Load the encoders of a diffusers folder: of Wan where the text encoder is a UMT5, of
        HunyuanVideo-1.5 where one is a Qwen2.5-VL.

        The folder has `text_encoder`, `tokenizer`, `text_encoder_2` and `tokenizer_2`, and for
        HunyuanVideo-I2V `image_processor`; `options` are those of the constructor. With `int8` the
        text and vision encoders hold eight-bit weights and compute in bfloat16, and so do encoders
        that were saved that way.
        Raises FileNotFoundError naming what is missing, and ModuleNotFoundError without torchao.
        """
        directory = Path(directory)
        keeps_all = is_wan(directory) or is_hunyuan_video15(directory)
        if keeps_all and (stride := options.pop("image_token_stride", 1)) != 1:
            raise ValueError(
                f"image_token_stride {stride}: the encoders in {directory} keep all image tokens; "
                "give 1"
            )
        if is_wan(directory):
            return WanPromptEncoder.load(directory, dtype, int8=int8, **options)
        if is_hunyuan_video15(directory):
            return HunyuanVideo15Encoder.load(directory, dtype, int8=int8, **options)
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        missing = [name for name in names if not (directory / name).is_dir()]
        if missing:
            raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}")
        processor = directory / "image_processor"
        language, clip = (
            _arguments(directory / name, dtype, int8=int8)
            for name in ("text_encoder", "text_encoder_2")
        )
        return cls(
            AutoModel.from_pretrained(directory / "text_encoder", **language),
            AutoTokenizer.from_pretrained(directory / "tokenizer"),
            CLIPTextModel.from_pretrained(directory / "text_encoder_2", **clip),
            AutoTokenizer.from_pretrained(directory / "tokenizer_2"),
            CLIPImageProcessorPil.from_pretrained(processor) if processor.is_dir() else None,
            **options,
        )

    def save(self, directory: Path | str) -> None:
        """Write the folders that `load` reads; quantised encoders stay quantised."""
        parts: dict[str, Any] = {
            "text_encoder": self.language,
            "tokenizer": self.tokenizer,
            "text_encoder_2": self.clip,
            "tokenizer_2": self.clip_tokenizer,
            "image_processor": self.image_processor,
        }
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(Path(directory) / name)

    @torch.no_grad()
    def forward(
        self, prompts: Sequence[str], images: Float[Tensor, "b 3 y x"] | None = None
    ) -> Conditions:
        """Encode prompts, with first frames in [-1, 1] of any size where `images` are given.

        The conditions are float32 and have no image prior, which is the VAE's work. Raises
        ValueError where the folder's encoder cannot see images, or a prompt has the image token.
        """
        if images is None:
            text, mask = self._text_tokens(prompts)
            return Conditions(text, mask, self._pooled(prompts))
        image_tokens, text, mask = self._image_and_text_tokens(prompts, images)
        return Conditions(text, mask, self._pooled(prompts), image_tokens=image_tokens)

    @property
    def sees_images(self) -> bool:
        """Whether first frames can be given: the folder is one of HunyuanVideo-I2V."""
        return self.image_processor is not None and isinstance(self.language, LlavaModel)

    def null(self, batch: int, images: Float[Tensor, "b 3 y x"] | None = None) -> Conditions:
        """Encode the null prompt for `batch` samples: the empty one, in the same template."""
        return self([NULL_PROMPT] * batch, images)

    def _text_tokens(
        self, prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        ids, mask = self._tokenize(prompts, self.text_template)
        hidden = self._hidden(ids, mask)
        start = self.text_template.crop_start
        return hidden[:, start:], mask[:, start:]

    def _image_and_text_tokens(
        self, prompts: Sequence[str], images: Float[Tensor, "b 3 y x"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Return LLaVA's hidden states of the image, and of the text behind it with their mask.

        The one image token of the template is repeated until there is one for each token of the
        vision branch; the header of the assistant's answer is cut out.
        """
        if self.image_processor is None or not isinstance(self.language, LlavaModel):
            raise ValueError("first frames need the LLaVA encoder of a HunyuanVideo-I2V folder")
        config: LlavaConfig = self.language.config
        ids, mask = self._tokenize(prompts, self.image_template)
        is_image = ids.eq(config.image_token_index)
        if (is_image.sum(1) != 1).any():
            token = self.tokenizer.convert_ids_to_tokens(config.image_token_index)
            raise ValueError(f"a prompt may not contain the image token {token}")
        at, count = int(is_image[0].nonzero()), config.image_seq_length
        hidden = self._hidden(
            _expand(ids, at, count), _expand(mask, at, count), self._pixels(images)
        )
        behind = torch.cat([hidden[:, :at], hidden[:, at + count - 1 :]], dim=1)
        kept = self._kept_positions(ids)
        text = torch.stack([row[index] for row, index in zip(behind, kept, strict=True)])
        mask = torch.stack([row[index] for row, index in zip(mask, kept, strict=True)])
        return hidden[:, at : at + count : self.image_token_stride], text, mask

    def _kept_positions(self, ids: Int[Tensor, "b n"]) -> list[Int[Tensor, " m"]]:
        """Return each row's positions from the prompt on, without the assistant's header."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        header = torch.tensor(
            self.tokenizer.convert_tokens_to_ids(END_OF_HEADER), device=ids.device
        )
        kept = []
        for row in ids:
            ends = row.eq(header).nonzero().flatten().tolist()
            end = ends[-1] if len(ends) >= NUM_HEADERS else ids.shape[1] - 1
            outside = (positions <= end - ASSISTANT_TOKENS) | (positions > end)
            kept.append(positions[outside & (positions >= self.image_template.crop_start)])
        return kept

    def _tokenize(
        self, prompts: Sequence[str], template: PromptTemplate
    ) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Return tokens, padded on the right and cut, and which of them are valid."""
        tokens = self.tokenizer(
            [template.text.format(prompt) for prompt in prompts],
            max_length=self.num_text_tokens + template.crop_start,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        ).to(self.language.device)
        return tokens["input_ids"], tokens["attention_mask"].bool()

    def _hidden(
        self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"], pixels: Tensor | None = None
    ) -> Float[Tensor, "b n d"]:
        images = {} if pixels is None else {"pixel_values": pixels}
        output = self.language(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, **images
        )
        return output.hidden_states[-(SKIPPED_LAYERS + 1)].float()

    def _pixels(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 s s"]:
        assert self.image_processor is not None
        frames = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
        processed = self.image_processor(list(frames), return_tensors="pt")
        return processed["pixel_values"].to(self.language.device, self.language.dtype)

    def _pooled(self, prompts: Sequence[str]) -> Float[Tensor, "b p"]:
        tokens = self.clip_tokenizer(
            list(prompts),
            max_length=NUM_CLIP_TOKENS,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self.clip.device)
        return self.clip(ids).pooler_output.float().to(self.language.device)


def _arguments(folder: Path, dtype: torch.dtype, *, int8: bool) -> dict[str, Any]:
    return encoder_arguments(folder) if int8 or is_int8(folder) else {"dtype": dtype}


def _expand(rows: Tensor, at: int, count: int) -> Tensor:
    """Repeat column `at` of (b, n) until it is there `count` times."""
    return torch.cat([rows[:, :at], rows[:, at : at + 1].expand(-1, count), rows[:, at + 1 :]], 1)


AnyPromptEncoder = PromptEncoder | HunyuanVideo15Encoder | WanPromptEncoder
"""The encoder of any family."""
