"""Collapse signs of generated clips: what collapse, stills and over-saturation change first."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.metrics.proxies import motion

SMALLEST_RATIO = 1e-3


@torch.no_grad()
def collapse_signs(pixels: Float[Tensor, "b 3 t y x"]) -> dict[str, float]:
    """Return means over clips in [-1, 1], in grey levels of 255. Our own measures.

    dynamic_degree: difference of neighbouring frames. saturation: spread of a pixel's colours.
    contrast: standard deviation of a frame's brightness. temporal_variance: of a pixel over time,
    squared levels.
    """
    levels = 127.5 * pixels
    grey = levels.mean(dim=1)
    signs = {
        "dynamic_degree": motion(pixels),
        "saturation": levels.amax(dim=1) - levels.amin(dim=1),
        "contrast": grey.std(dim=(2, 3)),
        "temporal_variance": levels.var(dim=2),
    }
    return {name: float(values.mean()) for name, values in signs.items()}


def compare_signs(found: Mapping[str, float], wanted: Mapping[str, float]) -> dict[str, float]:
    """Return each sign over its wanted value, and their `drift`: the mean size of the logarithms.

    A drift of 0 is no difference, of 0.7 a factor of two in every sign.
    """
    ratios = {name: found[name] / max(value, 1e-6) for name, value in wanted.items()}
    logs = [abs(math.log(max(ratio, SMALLEST_RATIO))) for ratio in ratios.values()]
    return ratios | {"drift": sum(logs) / len(logs)}
