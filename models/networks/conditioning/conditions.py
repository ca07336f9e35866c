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
    first-frame latent (b c 1 h w), or that and those of gray frames after it
    (`VideoVae.image_prior`), normalised like the latents, or None for text-to-video; and
    the image tokens (b m i) of the text encoder's vision branch, or of an image encoder of their
    own width, all valid, or None. A second text encoder has tokens (b q e) of the prompt's quoted
    words, their glyphs, and a mask like the text's; None where there are none.

    The numbers of valid text tokens stay on the host, so that a forward never waits for a GPU to
    tell them. They are read from the masks once, where they are not given.
    """

    text: Float[Tensor, "b n d"]
    text_mask: Bool[Tensor, "b n"]
    pooled: Float[Tensor, "b p"]
    image_prior: Float[Tensor, "b c k h w"] | None = None
    image_tokens: Float[Tensor, "b m i"] | None = None
    text_lengths: tuple[int, ...] = ()
    glyphs: Float[Tensor, "b q e"] | None = None
    glyph_mask: Bool[Tensor, "b q"] | None = None
    glyph_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.text_lengths) != len(self.text_mask):
            object.__setattr__(self, "text_lengths", _lengths(self.text_mask))
        if self.glyph_mask is not None and len(self.glyph_lengths) != len(self.glyph_mask):
            object.__setattr__(self, "glyph_lengths", _lengths(self.glyph_mask))

    @classmethod
    def null(
        cls,
        image_prior: Float[Tensor, "b c k h w"],
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
            text_lengths=(1,) * batch,
        )

    def __len__(self) -> int:
        return len(self.text)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditions":
        """Apply a function to every tensor."""
        return replace(self, **{name: function(t) for name, t in self._tensors().items()})

    def __getitem__(self, index: slice | Tensor) -> "Conditions":
        kept = {name: tensor[index] for name, tensor in self._tensors().items()}
        lengths = {
            name: getattr(self, name)[index] if isinstance(index, slice) else ()
            for name in ("text_lengths", "glyph_lengths")
        }
        return replace(self, **lengths, **kept)

    def to(self, device: torch.device | str) -> "Conditions":
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device))

    @staticmethod
    def cat(parts: Sequence["Conditions"]) -> "Conditions":
        """Concatenate along the batch.

        Raises:
            ValueError: if some parts have an image prior, image tokens or glyphs and others none.
        """
        tensors = [part._tensors() for part in parts]
        if any(part.keys() != tensors[0].keys() for part in tensors):
            raise ValueError(
                "either all conditions have an image prior, image tokens and glyphs, or none"
            )
        joined = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
        lengths = {
            name: tuple(length for part in parts for length in getattr(part, name))
            for name in ("text_lengths", "glyph_lengths")
        }
        return replace(parts[0], **lengths, **joined)

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _lengths(mask: Bool[Tensor, "b n"]) -> tuple[int, ...]:
    return tuple(mask.sum(dim=1).tolist())
