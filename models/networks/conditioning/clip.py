"""Embed images and texts in one space: CLIP, SigLIP and other two-tower models of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


class ImageTextEncoder(nn.Module):
    """Computes embeddings of length 1; the scalar product of two is their cosine similarity."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any
    ) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.tokenizer, self.image_processor = tokenizer, image_processor

    @classmethod
    def load(cls, directory: Path | str) -> "ImageTextEncoder":
        """Load a folder as transformers saves it: model, tokenizer and image processor.

        Raises FileNotFoundError or ValueError if it is no such folder or embeds not both.
        """
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(f"{directory} is no folder of transformers with a config.json")
        try:
            model = AutoModel.from_pretrained(directory, local_files_only=True)
            if not hasattr(model, "get_text_features"):
                raise ValueError(f"{type(model).__name__} does not embed both images and texts")
            return cls(
                model,
                AutoTokenizer.from_pretrained(directory, local_files_only=True),
                AutoImageProcessor.from_pretrained(directory, local_files_only=True, backend="pil"),
            )
        except OSError as error:
            raise FileNotFoundError(f"{directory} is not complete: {error}") from None

    @torch.no_grad()
    def images(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "b d"]:
        """Embed pictures of any sizes, with the preprocessing of the folder."""
        pixels = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return self._unit(self.model.get_image_features(pixels.to(self.model.device)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embed texts; what is too long is cut."""
        tokens = self.tokenizer(
            list(texts),
            max_length=self.model.config.text_config.max_position_embeddings,
            padding="max_length",  # SigLIP was trained so; CLIP does not mind
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        return self._unit(self.model.get_text_features(**tokens))

    def _unit(self, features: Any) -> Float[Tensor, "b d"]:
        return nn.functional.normalize(features.pooler_output.float(), dim=-1)
