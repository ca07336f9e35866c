"""How far LoRA and discriminator move with and without the factor on the LoRA's loss.

The shipped teacher of portrait-tiny on random latents, the critic's updates alone, at the paper's
rate: `python -m benchmarks.lora_factor`. Prints a row for each setting: the movement of the LoRA's
two matrices and of the discriminator, over those of float32 without a factor, and their cosine.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

NUM_CYCLES = 24
SETTINGS = [
    ("fp32", 1.0, 1e-8),
    ("fp32", 1e4, 1e-8),
    ("fp32", 1.0, 1e-12),
    ("bf16", 1e4, 1e-8),
    ("bf16", 1.0, 1e-8),
    ("bf16", 1.0, 1e-12),
]
"""Precision, factor and Adam's eps."""
PARTS = ("lora_A", "lora_B", "discriminator")


def recipe_of(precision: str, factor: float, eps: float) -> Recipe:
    """Return a training of two critic updates a cycle."""
    critic = {"lr": 3e-6, "betas": (0.0, 0.999), "eps": eps}
    return tiny_recipe(
        2,
        engine={"precision": precision},
        model={"teacher": "assets/portrait-tiny/teacher"},
        method={
            "lora_loss_scale": factor,
            "warmup_cycles": NUM_CYCLES,
            "num_fake_updates": 2,
        },
        schedule={
            "num_cycles": NUM_CYCLES,
            "optimizers": dict.fromkeys(("generator", "critic"), critic),
        },
    )


def movements(recipe: Recipe, data: AnyPath, folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Train; return how far each part's master weights moved, and the mean gradient norms."""
    worker = Worker(RunDirectory.create(folder, recipe), data, None, rank=0, world_size=1)
    places = worker.engines["critic"].places()
    before = [place.owner.detach().clone() for place in places]
    metrics = [worker.loop.cycle(cycle) for cycle in range(NUM_CYCLES)]
    steps = [
        (place.name, (place.owner.detach() - value).flatten())
        for place, value in zip(places, before, strict=True)
    ]
    moved = {part: torch.cat([step for name, step in steps if part in name]) for part in PARTS}
    names = ("critic/lora/grad_norm", "critic/discriminator/grad_norm")
    return moved, [sum(row[name] for row in metrics) / NUM_CYCLES for name in names]


def rows(folder: Path) -> Iterator[str]:
    """Yield the rows of the table."""
    data = write_cache(folder / "data", (16, 3, 4, 4))
    reference: dict[str, Tensor] = {}
    for precision, factor, eps in SETTINGS:
        moved, norms = movements(recipe_of(precision, factor, eps), data, folder)
        reference = reference or moved
        parts = (
            f"{moved[part].norm() / reference[part].norm():.3f} "
            f"({torch.cosine_similarity(moved[part], reference[part], dim=0):.3f})"
            for part in PARTS
        )
        found = " | ".join([*parts, *(f"{norm:.3g}" for norm in norms)])
        yield f"| {precision} | {factor:g} | {eps:g} | {found} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for row in rows(Path(name)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
