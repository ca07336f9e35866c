"""The description of a run in MLflow."""

import json
from collections.abc import Iterator

from magicdistill.platform.runs.run_directory import RunDirectory

LEGEND = """### How to read the curves

The step is the cycle of training; *System metrics* are those of this machine over time.

- `generator/…`, `critic/…`, `vae/…`: losses of a role, each term by itself; `grad_norm` is before
  clipping, of the critic's LoRA and its discriminator each by itself, and `lr` the learning rate
- `validation/…`: held-out clips in training. The proxy Fréchet distance is better where it is less;
  motion and flicker are over those of the real clips, so that 1 is best
- `supply/…`: noise-data pairs, or read samples, made and used per second, and waiting to be used
- `health/…`: the samples over those of the teacher, so that 1 is alike; `drift` is how far all of
  these are from 1
- `seconds_per_cycle`, `seconds/…`: where the time of a cycle went, on the first rank
- `ranks/…`: the same of all ranks, now and then: least, median and greatest seconds of a cycle and
  peak memory, and whose the greatest is. The others wait for the rank with least `in_collectives`
- `evaluation/<way>/…`: the table at the end, by way of generating

The folder *samples* under *Artifacts* shows the same clips side by side in the course of training.
"""
COLUMNS = {
    "variant": "",
    "sampler": "sampler",
    "nfe": "network evaluations",
    "seconds_per_clip": "s per clip",
    "proxy_frechet_distance": "FD (proxy) ↓",
    "num_clips": "n",
    "dynamic_degree_proxy": "motion ÷ real",
    "flicker_proxy": "flicker ÷ real",
}


def describe(run: RunDirectory) -> str:
    """Return the Markdown text that MLflow shows on a run: what it is, and what came of it."""
    recipe = run.recipe()
    schedule = recipe.schedule
    facts = {
        "recipe": f"`{recipe.name}`, seed {recipe.seed}",
        "teacher": recipe.model.teacher and f"`{recipe.model.teacher}`",
        "training": f"{schedule.num_cycles} cycles, {schedule.batch_size} clips in each update, on "
        f"{recipe.cluster.num_workers} workers",
        "clips": ", ".join(f"{name}: {facts['mixture']}" for name, facts in run.data().items()),
        "folder": f"`{run.path}`",
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    return "\n".join(
        [recipe.method.headline, "", "| | |", "|---|---|", *rows, "", *_scores(run), LEGEND]
    )


def _scores(run: RunDirectory) -> Iterator[str]:
    if not run.scores_path.exists():
        return
    yield "### Held-out clips\n"
    yield "| " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for row in json.loads(run.scores_path.read_text()):
        cells = (row.get(name, "") for name in COLUMNS)  # older runs have no n
        yield f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in cells)} |"
    yield ""
