"""Compare noise levels, without PyTorch: training and sampling give a step to the same expert."""

from typing import Any

ROUNDING = 1e-6
"""Levels that are nearer are the same one: grids are computed in float32, and plans in float64."""


def reaches(level: Any, boundary: float) -> bool:
    """Tell whether a noise level is a boundary or above it; a tensor of one level is one."""
    return bool(level >= boundary - ROUNDING)
