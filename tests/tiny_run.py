"""The smallest real training: portrait-tiny in plain torch, on random latents."""

from pathlib import Path
from typing import Any

import torch

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.platform.config.recipe import Recipe, load_recipe

LATENTS = (16, 5, 8, 8)
"""17 frames of 64 x 64."""
NUM_ROWS = 64


def tiny_recipe(batch_size: int, **sections: dict[str, Any]) -> Recipe:
    """Return portrait-tiny with random weights, in which every cycle updates both roles.

    Fields of `sections` replace those of the recipe's sections: `schedule={"num_cycles": 3}`.
    """
    values = load_recipe("portrait-tiny").model_dump()
    values["model"]["teacher"] = None
    values["method"]["warmup_cycles"] = 0
    values["engine"] = {"kind": "torch"}
    values["schedule"] |= {"batch_size": batch_size, "num_cycles": 100, "sample_every": None}
    for name, changes in sections.items():
        values[name] |= changes
    return Recipe.model_validate(values)


def write_cache(
    folder: Path, shape: tuple[int, ...] = LATENTS, num_rows: int = NUM_ROWS
) -> AnyPath:
    """Write random latents, the same at every call; return the version of the cache."""
    rng = torch.Generator().manual_seed(0)
    rows = [
        LatentRow(
            RowFacts(str(i), str(i), str(i), "", "", "", 0, False),
            torch.randn(shape, generator=rng),
        )
        for i in range(num_rows)
    ]
    write_shard(folder, rows)
    text = NullText(num_tokens=4, token_dim=64, pooled_dim=64)
    return publish(folder, list(committed_rows(folder).values()), text)
