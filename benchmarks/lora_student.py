"""A full student and a LoRA student side by side: quality, bytes, memory and seconds.

`python -m benchmarks.lora_student DATA/latents`, where `DATA` is the data folder of a run of
portrait-tiny: the last fifth of its training clips is held out. Each student is trained in a
process of its own, in plain torch, and measured by the columns of the recipe's own table.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from magicdistill.data_pipeline.io.storage import AnyPath, place
from magicdistill.data_pipeline.latents.cache import LatentCache, committed_rows, publish
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.export.export import export_lora
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.validation import Validation
from magicdistill.platform.training.worker import Worker

STUDENTS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"kind": "full"}, 1e-4),
    "lora": ({"kind": "lora", "rank": 16}, 1e-3),
}
"""What is trained of the generator, and at which rate."""


def recipe_of(kind: str, num_cycles: int) -> Recipe:
    """Return portrait-tiny in plain torch on one worker, shorter and with a smaller batch."""
    values = load_recipe("portrait-tiny").model_dump()
    student, rate = STUDENTS[kind]
    values["method"] |= {"student": student, "warmup_cycles": 2}
    values["schedule"] |= {"num_cycles": num_cycles, "batch_size": 4, "sample_every": None}
    values["schedule"] |= {"checkpoint_every": num_cycles, "ema_decay": None}
    values["schedule"]["optimizers"]["generator"] |= {"lr": rate}
    values |= {"name": kind, "engine": {"kind": "torch"}, "health": {"action": "off"}}
    values["evaluation"]["num_shown"] = 1
    return Recipe.model_validate(values)


def caches(latents: str) -> tuple[AnyPath, AnyPath]:
    """Publish the rows of all clips but the last fifth, and one row of each of those."""
    root = place(latents)
    rows = list(committed_rows(root).values())
    if not rows:
        sys.exit(f"{latents}: no latents are there; give those that jobs/curate.py has written")
    clips = sorted({str(row["source_id"]) for row in rows})
    last = clips[len(clips) * 4 // 5 :]
    text = load_recipe("portrait-tiny").data.null_text
    held_out = {row["source_id"]: row for row in rows if row["source_id"] in last}
    training = [row for row in rows if row["source_id"] not in last]
    return publish(root, training, text), publish(root, list(held_out.values()), text)


def train(kind: str, training: AnyPath, held_out: AnyPath, num_cycles: int) -> dict[str, Any]:
    """Train one student; return what was measured."""
    recipe = recipe_of(kind, num_cycles)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder), recipe, kind)
        worker = Worker(run, training, None, rank=0, world_size=1)
        start = time.process_time()
        worker.run_all()
        seconds = (time.process_time() - start) / num_cycles
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        state = sum(
            tensor.nbytes for engine in worker.engines.values() for tensor in _tensors(engine)
        )
        files = {"model": _size(run.path / "model"), "checkpoint": _size(run.checkpoints)}
        if kind == "lora":
            exported = Path(folder) / "exported"
            export_lora(str(run.path), exported, of_student=True)
            files["lora"] = (exported / "adapter_model.safetensors").stat().st_size
        scores = scores_of(load_transformer(run.path / "model"), recipe, held_out)
    return {"cpu_s_per_cycle": seconds, "peak_bytes": peak, "state_bytes": state, **files, **scores}


def _tensors(engine: Any) -> list[torch.Tensor]:
    """Return trained weights, as many gradients, and the moments."""
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    moments = [t for state in engine.optimizer.state.values() for t in state.values() if t.dim()]
    return [*trained, *trained, *moments]


def scores_of(transformer: Any, recipe: Recipe, held_out: AnyPath) -> dict[str, float]:
    """Return the metrics of the table that need no network, with the recipe's few steps."""
    num = len(LatentCache(held_out))
    own = Validation(recipe, held_out, rank=0, world_size=1, device="cpu", num_scored=num)
    found = own.scores(VelocityModel(transformer))
    return {"n": num} | {name.rpartition("/")[2]: value for name, value in found.items()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Print a line of JSON for each student, and for the teacher with the same steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("latents")
    parser.add_argument("--cycles", type=int, default=24)
    parser.add_argument("--kind", choices=[*STUDENTS, "teacher"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.kind is None:
        for kind in ("teacher", *STUDENTS):
            command = [sys.executable, "-m", "benchmarks.lora_student", args.latents]
            subprocess.run([*command, "--cycles", str(args.cycles), "--kind", kind], check=True)
        return
    training, held_out = caches(args.latents)
    if args.kind == "teacher":
        recipe = recipe_of("full", args.cycles)
        teacher = load_transformer(str(recipe.model.teacher))
        found: dict[str, Any] = scores_of(teacher, recipe, held_out)
    else:
        found = train(args.kind, training, held_out, args.cycles)
    print(json.dumps({"kind": args.kind, **found}), flush=True)


if __name__ == "__main__":
    main()
