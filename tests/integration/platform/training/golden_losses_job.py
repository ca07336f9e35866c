"""A driver for test_golden_losses.py: train with every method and write the losses as text."""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import deal
from magicdistill.platform.data.stream_source import build_producer
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

LATENTS = (16, 3, 4, 4)
"""Nine frames of 32 x 32."""
TEACHER = "assets/portrait-tiny/teacher"
RATE = {"lr": 1.0e-3, "betas": (0.5, 0.99), "warmup_steps": 2, "decay_steps": 6}
TWO = {"num_fake_updates": 2}
AS_FASTGEN = {"same_noise": True, "fake_score_target": "x0"}
CASES: dict[str, dict[str, Any]] = {
    "vae": {"name": "vae"},
    "finetune": {"name": "finetune", "uniform_share": 0.5},
    "cfg-distill": {"name": "cfg-distill"},
    "lcm": {"name": "lcm", "sampler": {"name": "consistency"}},
    "dmd": {"name": "dmd", "real_guidance": 3.0} | TWO,
    "dmd2": {"name": "dmd2", "r1_weight": 0.1} | TWO,
    "magic": {"name": "magic", "alpha_weak": 0.5, "warmup_cycles": 1, "share_rollout": True} | TWO,
    "magic-pairs": {"name": "magic", "sampler": {"num_steps": 1}, "pairs": {"num_cycles": 3}} | TWO,
    "magic-anchored": {"name": "magic", "pairs": {"num_cycles": 3}} | AS_FASTGEN | TWO,
    "magic-gt": {"name": "magic-gt"} | TWO,
    "magic-gt-guided": {"name": "magic-gt", "ground_truth": "huber", "cfg_distillation": {}} | TWO,
}
"""Methods by the name of their text, with what differs from the defaults."""


def recipe_of(case: str) -> Recipe:
    """Return a recipe of three cycles; two micro-batches are accumulated into each update."""
    schedule = {
        "num_cycles": 3,
        "num_micro_batches": 2,
        "ema_decay": 0.9,
        "optimizers": dict.fromkeys(("generator", "critic", "decoder"), RATE),
    }
    values = tiny_recipe(2, schedule=schedule, model={"teacher": TEACHER}).model_dump()
    values |= {"name": case, "method": CASES[case], "health": {"action": "off"}}
    if "pairs" in CASES[case]:
        values["pairs"] = {"generator": TEACHER, "sampler": {"num_steps": 2}}
    return Recipe.model_validate(values)


def train(case: str, data: AnyPath, folder: Path) -> RunDirectory:
    """Train alone, without Ray; pairs are made in this process."""
    recipe = recipe_of(case)
    run = RunDirectory.create(folder, recipe, case)
    worker = Worker(run, data, None, rank=0, world_size=1)
    if recipe.pairs is not None:
        positions = deal(recipe.schedule, 1, rank=0, world_size=1)
        make = build_producer(recipe, data, positions)
        worker.loop.batches = lambda step, micro: make(positions.index(step, micro))
    worker.run_all()
    return run


def text_of(run: RunDirectory) -> str:
    """Return the mean of every loss term and gradient norm in every cycle, and the weights."""
    lines = []
    for row in run.metrics():
        for name, value in sorted(row.items()):
            if not name.startswith(("step", "seconds", "ranks")) and not name.endswith("/lr"):
                lines.append(f"{row['step']} {name} {value!r}\n")
    return "".join([*lines, f"weights {digest(run.path / 'model')}\n"])


def digest(model: Path) -> str:
    """Return a text that changes with any bit of the exported weights."""
    hashed = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        for name, value in sorted(load_file(path).items()):
            hashed.update(name.encode() + value.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def write_pixels(folder: Path) -> AnyPath:
    """Write windows of random pixels, for a VAE."""
    path = folder / "windows.npy"
    windows = np.random.default_rng(0).integers(0, 256, (8, 9, 32, 32, 3), dtype=np.uint8)
    np.save(path, windows)
    return path


def main() -> None:
    """Write FOLDER/CASE.txt of all cases, or of those that follow the folder."""
    out, *cases = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        latents, pixels = write_cache(folder / "latents", LATENTS), write_pixels(folder)
        for case in cases or CASES:
            run = train(case, pixels if case == "vae" else latents, folder)
            (Path(out) / f"{case}.txt").write_text(text_of(run))


if __name__ == "__main__":
    main()
