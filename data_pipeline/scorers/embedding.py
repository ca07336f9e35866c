"""CLIP embeddings, by which near duplicates are found where a model is given."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import (
    CountScorer,
    Frame,
    Values,
    Weights,
    existing,
)

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


class Embedding(CountScorer):
    """Mean of the unit CLIP embeddings (Radford et al. 2021) of a few frames, as float16."""

    kind: Literal["embedding"] = "embedding"
    num_frames: int = 4
    clip: Weights | None = None
    """Folder of a CLIP model as transformers saves it, such as openai/clip-vit-large-patch14."""
    ON_GPU: ClassVar = True
    MODEL: ClassVar = "the CLIP image encoder that the recipe names"

    def weights_files(self) -> Sequence[Path] | None:
        """Return the model's files, or null."""
        return None if self.clip is None else clip_files(self.clip, self.kind)

    def look(self, frame: Frame, last: Frame | None) -> Array:
        """Return the unit embedding of a frame."""
        assert self.clip
        return embed(frame, self.clip)

    def summary(self, looks: Sequence[Array], step_s: float) -> Values:
        """Return nothing: embeddings are compared, not judged."""
        return {}

    def blob(self, looks: Sequence[Array]) -> bytes:
        """Return the mean."""
        return np.mean(looks, axis=0).astype(np.float16).tobytes()


def clip_files(folder: Path, kind: str) -> list[Path]:
    """Return what decides a CLIP model's output: its configuration and its weights."""
    files = sorted(existing(folder, kind).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"the CLIP folder of scorer {kind!r}, {folder}, has no safetensors")
    return [existing(folder / "config.json", kind), *files]


def embed(frame: Frame, folder: Path) -> Array:
    """Return a frame's unit CLIP embedding (d,), made once however many scorers ask.

    Preprocessing is CLIP's: short side to the input size (bicubic), centre crop, normalise.
    """
    return frame.derive(("clip", folder), lambda rgb: _embed(rgb, folder))


def _embed(rgb: Array, folder: Path) -> Array:
    import torch  # seconds to import: only where a model is given

    model = _model(folder)
    side = model.config.image_size
    height, width = rgb.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32)
    pixels = torch.from_numpy(((square / 255 - MEAN) / STD).transpose(2, 0, 1)[None])
    with torch.inference_mode():
        embedding = model(pixel_values=pixels.to(model.device)).image_embeds[0]
        return torch.nn.functional.normalize(embedding, dim=0).cpu().numpy()


@lru_cache
def _model(folder: Path) -> Any:
    import torch
    from transformers import CLIPVisionModelWithProjection

    model: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
