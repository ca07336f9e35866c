"""The conditions from which a video is generated: text and first frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NULL_PROMPT = ""
"""The prompt of guidance's unconditional forward, and of samples whose prompt is dropped."""


@dataclass(frozen=True)
class Conditions:
    """Text and image conditions of a batch.

    text (b n d) and its mask (b n), valid tokens first; pooled text (b p); the image prior: the
    first-frame latent (b c 1 h w), normalised like the latents, or None for text-to-video; and
    the image tokens (b m d) of the text encoder's vision branch, all valid, or None.
    """

    text: Float[Tensor, "b n d"]
    text_mask: Bool[Tensor, "b n"]
    pooled: Float[Tensor, "b p"]
    image_prior: Float[Tensor, "b c 1 h w"] | None = None
    image_tokens: Float[Tensor, "b m d"] | None = None

    @classmethod
    def null(
        cls,
        image_prior: Float[Tensor, "b c 1 h w"],
        *,
        num_tokens: int,
        text_dim: int,
        pooled_dim: int,
    ) -> "Conditions":
        """Return the null prompt for image-to-video.

        The embedding is zero and keeps one valid token, because attention over an all-masked
        text gives NaN.
        """
        batch = len(image_prior)
        mask = image_prior.new_zeros(batch, num_tokens, dtype=torch.bool)
        mask[:, 0] = True
        return cls(
            text=image_prior.new_zeros(batch, num_tokens, text_dim),
            text_mask=mask,
            pooled=image_prior.new_zeros(batch, pooled_dim),
            image_prior=image_prior,
        )

    def __len__(self) -> int:
        return len(self.text)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditions":
        """Apply a function to every tensor."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in present.items() if v is not None})

    def __getitem__(self, index: slice | Tensor) -> "Conditions":
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> "Conditions":
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device))

    @staticmethod
    def cat(parts: Sequence["Conditions"]) -> "Conditions":
        """Concatenate along the batch.

        Raises:
            ValueError: if some parts have an image prior or image tokens and others have none.
        """
        present = [[getattr(part, f.name) is not None for f in fields(part)] for part in parts]
        if any(row != present[0] for row in present):
            raise ValueError("either all conditions have an image prior and image tokens, or none")
        names = [f.name for f in fields(Conditions) if getattr(parts[0], f.name) is not None]
        return replace(
            parts[0], **{name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        )
