"""Read held-out clips, in the same way in validation and in evaluation."""

from collections.abc import Sequence

import torch

from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.data.batches import collate


def held_out(cache: LatentCache, rows: Sequence[int], device: torch.device | str) -> Batch:
    """Read clips of a held-out cache by row."""
    return collate(cache, rows, positions=rows, device=device)
