"""The model card of an exported network."""

import json
from collections.abc import Iterator
from typing import Any

from diffusers import HunyuanVideoTransformer3DModel

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS, sigma_grid
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.run_directory import RunDirectory

CARD = """---
library_name: diffusers
pipeline_tag: image-to-video
---
# {name}

A `HunyuanVideoTransformer3DModel` of diffusers, trained with MagicDistill.

| | |
|---|---|
{facts}

## Measured

{measured}

## Use

```python
from diffusers import HunyuanVideoTransformer3DModel

transformer = HunyuanVideoTransformer3DModel.from_pretrained("this folder")
```

The output is the velocity eps - x0 of flow matching; the image enters by `{layout}`. `recipe.yaml`
holds every constant of the training.
"""


def model_card(
    run: RunDirectory,
    cycle: int,
    transformer: HunyuanVideoTransformer3DModel,
    dtype: str,
    *,
    averaged: bool,
) -> str:
    """Return the Markdown text for the weights after `cycle` cycles of a run."""
    recipe = run.recipe()
    decay = recipe.schedule.ema_decay
    sampler: SamplerConfig | None = getattr(recipe.method, "sampler", None)
    provenance = run.provenance()
    facts = {
        "parameters": f"{sum(p.numel() for p in transformer.parameters()):,} in {dtype}",
        "recipe": recipe.name,
        "method": recipe.method.name,
        "sampler": _sampler(sampler) if sampler else "a many-step model: any flow-matching sampler",
        "cycles": f"{cycle} of {recipe.schedule.num_cycles}",
        "weights": f"average, decay {decay}" if averaged else "the last ones, no average",
        "teacher": recipe.model.teacher,
        "VAE": recipe.model.vae,
        "data version": ", ".join(
            f"{name} {facts['latents']}" for name, facts in run.data().items()
        ),
        "seed": str(recipe.seed),
        "code": f"{provenance.commit or 'unknown'}{', changed' if provenance.diff else ''}",
    }
    return CARD.format(
        name=run.path.name,
        layout=transformer.config["image_condition_type"],
        facts="\n".join(f"| {name} | {value or 'not recorded'} |" for name, value in facts.items()),
        measured="\n".join(_measured(run, cycle)) or "Nothing.",
    )


def _sampler(sampler: SamplerConfig) -> str:
    timesteps = NUM_TRAIN_TIMESTEPS * sigma_grid(sampler.num_steps, sampler.shift)[:-1]
    listed = ", ".join(f"{timestep:.1f}" for timestep in timesteps.tolist())
    guidance = f", guidance {sampler.guidance:g} (Ho)" if sampler.guidance != 1 else ""
    return f"{sampler.name}, {sampler.num_steps} steps at timesteps {listed}{guidance}"


def _measured(run: RunDirectory, cycle: int) -> Iterator[str]:
    """Yield a table of the cycle's metrics, and that of the evaluation of a finished run."""
    row = next((row for row in run.metrics() if row["step"] == cycle), None)
    if row is not None:
        yield from _table([{"metric": name, "mean": value} for name, value in row.items()])
    if run.scores_path.exists() and cycle == run.recipe().schedule.num_cycles:
        yield "\nOn held-out clips:\n"
        yield from _table(json.loads(run.scores_path.read_text()))


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|---" * len(rows[0]) + "|"
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        yield "| " + " | ".join(cells) + " |"
