"""How fast GPUs computed when `benchmarks/gpu.py` measured them, for plans."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from magicdistill.models.config import Config
from magicdistill.models.networks.config import AttentionKernel
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import GpuName
from magicdistill.platform.planning.plan import GPUS


class MeasuredThroughput(Config):
    """Operations a second of the blocks of a preset, forward and backward, by attention kernel."""

    gpu: GpuName
    operations_per_s: dict[AttentionKernel, float]


def measured_mfu(file: Path, recipe: Recipe) -> float:
    """Return the share of the peak that the recipe's kernel reached in a result of the benchmark.

    Raises RecipeError where the file has no rates, none of that kernel, or those of a GPU with
    another peak.
    """
    try:
        content: Any = json.loads(file.read_text())
        rates = MeasuredThroughput.model_validate(content.get("rates"))
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise RecipeError(
            f"--rates {file}: no rates of a known GPU ({error}); make them there with "
            "python benchmarks/gpu.py"
        ) from None
    kernel, gpu = recipe.kernels.attention, recipe.cluster.gpu
    if kernel not in rates.operations_per_s:
        raise RecipeError(
            f"--rates {file}: kernels.attention {kernel} was not measured; there are "
            f"{', '.join(rates.operations_per_s)}"
        )
    if GPUS[rates.gpu].operations_per_s != GPUS[gpu].operations_per_s:
        raise RecipeError(
            f"--rates {file}: measured on {rates.gpu}, and cluster.gpu {gpu} has another peak; "
            f"measure there, or plan for --cluster.gpu {rates.gpu}"
        )
    return rates.operations_per_s[kernel] / GPUS[gpu].operations_per_s
