"""The 1-step stage: regress a few-step generator's video from its noise (002 section 4)."""

import torch
from torch import Tensor

from magicdistill.models.objectives.huber import pseudo_huber
from magicdistill.models.objectives.types import Batch, Loss


def pair_loss(x_hat: Tensor, batch: Batch, weight: float, huber_c: float) -> Loss:
    """Return weight * Huber(G(noise), video) of a batch's pairs. Known in words.

    Raises:
        ValueError: if the batch has no pairs.
    """
    if batch.pair is None:
        raise ValueError("method.pairs is set, and nothing makes pairs: give the recipe `pairs`")
    distance = pseudo_huber(x_hat, batch.pair.video, huber_c)
    terms = {"pairs": distance.detach(), "pair_weight": torch.tensor(weight)}
    return Loss(weight * distance, terms)
