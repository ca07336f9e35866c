"""Aesthetics: LAION's predictor on CLIP embeddings."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import (
    CountScorer,
    Frame,
    Values,
    Weights,
    existing,
)
from magicdistill.data_pipeline.scorers.embedding import clip_files, embed


class Aesthetics(CountScorer):
    """Mean score, about 1 to 10, of LAION's aesthetic predictor (Schuhmann 2022) on CLIP ViT-L/14.

    The published predictors are chains of linear layers without activations, read here in the
    order of their names. Neither they nor CLIP come in a package: without both paths the score
    is absent.
    """

    kind: Literal["aesthetics"] = "aesthetics"
    num_frames: int = 4
    clip: Weights | None = None
    """Folder of openai/clip-vit-large-patch14 as transformers saves it."""
    predictor: Weights | None = None
    """`sac+logos+ava1-l14-linearMSE.pth` or `sa_0_4_vit_l_14_linear.pth`."""
    ON_GPU: ClassVar = True
    MODEL: ClassVar = "LAION aesthetic predictor on CLIP ViT-L/14"
    SCORES: ClassVar = ("laion",)

    def weights_files(self) -> Sequence[Path] | None:
        """Return the files of CLIP and of the predictor, or null."""
        if self.clip is None or self.predictor is None:
            return None
        return [*clip_files(self.clip, self.kind), existing(self.predictor, self.kind)]

    def look(self, frame: Frame, last: Frame | None) -> float:
        """Return the score of a frame."""
        assert self.clip and self.predictor
        vector = embed(frame, self.clip)
        for weight, bias in _layers(self.predictor):
            vector = weight @ vector + bias
        return float(vector[0])

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        """Return the mean over the frames."""
        return {"laion": float(np.mean(looks))}


@lru_cache
def _layers(path: Path) -> list[tuple[Array, Array]]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    names = sorted(name.removesuffix("weight") for name in state if name.endswith("weight"))
    return [(state[f"{n}weight"].numpy(), state[f"{n}bias"].numpy()) for n in names]
