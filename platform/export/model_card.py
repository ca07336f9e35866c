"""Write the model card of an exported network."""

import json
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import diffusers

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS, sigma_grid
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.models.objectives.types import Lora
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.export.pretrained_model import sampler_of
from magicdistill.platform.runs.run_directory import RunDirectory

CARD = """---
library_name: diffusers
pipeline_tag: image-to-video
---
# {name}

{what} `{network}` was trained with MagicDistill.

| | |
|---|---|
{facts}

## Measured

{measured}

## Use

{use}

The output of the transformer is the velocity eps - x0 of flow matching{entry}. \
`recipe.yaml` holds every constant of the training.

## Licence

{licence}
"""

USE = """```python
import torch
from diffusers import {pipeline}
from diffusers.utils import load_image
from safetensors.torch import load_file
{imports}
folder = "this folder"
encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_processor")
pipeline = {pipeline}.from_pretrained(folder, **dict.fromkeys(encoders))
state = {{}}
output = pipeline(
    load_image("first frame").resize(({width}, {height})),
    **load_file(f"{{folder}}/null_prompt.safetensors"),
    num_frames={num_frames},
    height={height},
    width={width},
    num_inference_steps={num_steps},
    guidance_scale={guidance:g},
    generator=torch.Generator().manual_seed(0),
    callback_on_step_end=lambda pipeline, step, timestep, now: state.update(now) or now,
    output_type="latent",
)
latents = state["latents"] / pipeline.vae_scaling_factor
video = pipeline.vae.decode(latents).sample
```

With `latent_concat` the pipeline itself returns the frames from the fifth on, which is why its
latents are kept and decoded. It starts with 0.1 % of the image in the noise. `jobs/sample.py` does
not: its video is that of `latents=(noise - 0.001 * prior) / 0.999` in place of `generator`, where
`prior` are the image's latents times the VAE's `scaling_factor`.
"""
OWN_USE = """```sh
python jobs/sample.py --model "this folder" --image "first frame" --out video.mp4
```

diffusers has no pipeline for this network. `recipe.yaml` names the module of its class in
`plugins`.
"""
OTHER_USE = """```sh
python jobs/sample.py --model "this folder" --image "first frame" --out video.mp4
```

The folder is also a `{pipeline}` of diffusers without its encoders: give `from_pretrained` those of
the teacher's folder, and the call the tensors of `null_prompt.safetensors` or a prompt. It always
shows the first frame to its image encoder, which `jobs/sample.py` does not.
"""
OWN_VAE = "import magicdistill.platform.export.patch_autoencoder  # the decoder of `vae`\n"
PATCH_DECODER = """
diffusers lacks the decoder of `vae`, which comes with MagicDistill: without that import
`from_pretrained` fails, so that nothing is decoded by another decoder.
"""
PROMPTS = """
The prompt, and the empty one, are what `HunyuanVideoPipeline.encode_prompt` makes of them with the
encoders of `{encoder}`; they take the place of `null_prompt.safetensors`.
"""
FAMILY_PROMPTS = """
The prompt and the empty one, and the first frame where the network sees one, are encoded as
`{pipeline}` does it with the encoders of `{encoder}`; what they give takes the place of
`null_prompt.safetensors`.
"""
SEEN_PROMPTS = """
The prompt, and the empty one, are what `HunyuanVideoImageToVideoPipeline.encode_prompt` makes of
them and of the first frame with the encoders of `{encoder}` and `image_embed_interleave={stride}`;
they take the place of `null_prompt.safetensors`. The frame is cropped and resized to the video's
size before.
"""
LORA_CARD = """---
library_name: peft
base_model: {teacher}
---
# {name}, weak-to-strong LoRA

On the frozen teacher `{teacher}` this branch is the *fake score* at strength {strong:g}; at
{weak:g} it is the *real score* of weak-to-strong distillation (MagicDistillation, Eq. 6).

| | |
|---|---|
{facts}

## Use

```python
pipeline.load_lora_weights("this folder")  # of diffusers, with the teacher as its transformer
pipeline.set_adapters("default_0", {weak:g})
```

or, on a transformer alone,

```python
from {module} import {network}

transformer = {network}.from_pretrained("the teacher")
transformer.load_lora_adapter("this folder", weight_name="pytorch_lora_weights.safetensors")
transformer.set_adapters("default_0", {weak:g})
```

or `peft.PeftModel.from_pretrained(transformer, "this folder")`, at strength 1. `recipe.yaml` holds
every constant of the training.

## Licence

{licence}
"""
STUDENT_CARD = """---
library_name: peft
base_model: {base}
---
# {name}, LoRA of the student

On the frozen `{base}` this branch, at strength 1, is a few-step generator of `{network}`.

| | |
|---|---|
{facts}

| file | for |
|---|---|
| `pytorch_lora_weights.safetensors` | `load_lora_weights` of diffusers' pipelines |
| `adapter_model.safetensors`, `adapter_config.json` | peft |
| `original_lora.safetensors`, if the original code has other names | ComfyUI |
| `kohya_lora.safetensors`, likewise | musubi-tuner, in the names of kohya's scripts |

## Use

```python
pipeline.load_lora_weights("this folder")  # of diffusers, with the base as its transformer
```

or `peft.PeftModel.from_pretrained(transformer, "this folder")`. The sampler's grid is part of the
student: the flow shift is {shift:g}, and guidance {guidance:g}. `recipe.yaml` holds every constant
of the training.

## Licence

{licence}
"""
ORIGINAL_CARD = """# {name}

`{file}` holds the weights of `{network}` in the names of its original code, for programs that read
its published files: ComfyUI, or `from_single_file` of diffusers where its class has that.

| | |
|---|---|
{facts}

`recipe.yaml` holds every constant of the training.

## Licence

{licence}
"""
LICENCE = """The code is Apache-2.0. These weights start from the teacher `{teacher}` and
stay under its licence; the VAE `{vae}` has its own. They were trained on

{sources}

whose terms may forbid uses that the others allow."""


def model_card(
    run: RunDirectory,
    cycle: int,
    num_parameters: int,
    dtype: str,
    *,
    family: type[BackboneConfig],
    config: Mapping[str, Any],
    averaged: bool,
    patch_decoder: bool = False,
) -> str:
    """Return the Markdown text for the weights after `cycle` cycles of a run.

    `config` is the transformer's in diffusers; `patch_decoder` tells that the VAE has one, which
    diffusers lacks.
    """
    recipe = run.recipe()
    layout, pipeline = family.image_layout(config), family.pipeline_of(config)
    decay = recipe.schedule.ema_decay
    facts = {
        "parameters": f"{num_parameters:,} in {dtype}",
        "sampler": _sampler(sampler_of(recipe)),
        "weights": f"average, decay {decay}" if averaged else "the last ones, no average",
    }
    return CARD.format(
        name=run.path.name,
        what="A pipeline of diffusers whose" if pipeline else "Parts of a pipeline whose",
        network=family.class_name,
        entry=f"; the image enters by\n`{layout}`" if layout else "",
        facts=_facts(run, cycle, facts),
        measured="\n".join(_measured(run, cycle)) or "Nothing.",
        use=_use(recipe, pipeline, family.stock_call, patch_decoder=patch_decoder).rstrip(),
        licence=_licence(recipe),
    )


def lora_card(run: RunDirectory, cycle: int, num_parameters: int, lora: Lora) -> str:
    """Return the Markdown text of a weak-to-strong LoRA after `cycle` cycles of a run."""
    recipe, network = run.recipe(), type(lora.transformer)
    return LORA_CARD.format(
        name=run.path.name,
        network=network.__name__,
        module="diffusers" if network.__module__.startswith("diffusers.") else network.__module__,
        teacher=recipe.model.teacher,
        strong=lora.strong,
        weak=lora.weak,
        facts=_facts(run, cycle, {"parameters": f"{num_parameters:,}"}),
        licence=_licence(recipe),
    )


def student_card(run: RunDirectory, cycle: int, num_parameters: int, lora: Lora) -> str:
    """Return the Markdown text of a student that is a LoRA, after `cycle` cycles of a run."""
    recipe = run.recipe()
    sampler = sampler_of(recipe)
    facts = {"parameters": f"{num_parameters:,}", "sampler": _sampler(sampler)}
    return STUDENT_CARD.format(
        name=run.path.name,
        network=type(lora.transformer).__name__,
        base=recipe.model.generator or recipe.model.teacher,
        facts=_facts(run, cycle, facts),
        shift=sampler.shift,
        guidance=sampler.guidance,
        licence=_licence(recipe),
    )


def original_card(
    run: RunDirectory, cycle: int, num_parameters: int, dtype: str, *, file: str
) -> str:
    """Return the Markdown text of a network in one file, after `cycle` cycles of a run."""
    recipe = run.recipe()
    facts = {
        "parameters": f"{num_parameters:,} in {dtype}",
        "sampler": _sampler(sampler_of(recipe)),
    }
    return ORIGINAL_CARD.format(
        name=run.path.name,
        file=file,
        network=recipe.model.shapes.transformer.class_name,
        facts=_facts(run, cycle, facts),
        licence=_licence(recipe),
    )


def _facts(run: RunDirectory, cycle: int, own: dict[str, str]) -> str:
    """Return the table of where the weights come from, beginning with the given facts."""
    recipe, provenance = run.recipe(), run.provenance()
    facts = own | {
        "recipe": recipe.name,
        "method": recipe.method.name,
        "cycles": f"{cycle} of {recipe.schedule.num_cycles}",
        "teacher": recipe.model.teacher,
        "VAE": recipe.model.vae,
        "data version": ", ".join(
            f"{name} {facts['latents']}" for name, facts in run.data().items()
        ),
        "seed": str(recipe.seed),
        "code": f"{provenance.commit or 'unknown'}{', changed' if provenance.diff else ''}",
    }
    return "\n".join(f"| {name} | {value or 'not recorded'} |" for name, value in facts.items())


def _use(
    recipe: Recipe, pipeline: str | None, stock_call: str | None, *, patch_decoder: bool
) -> str:
    if pipeline is None:
        return OWN_USE
    if "height" not in signature(getattr(diffusers, pipeline).__call__).parameters:
        return OTHER_USE.format(pipeline=pipeline)
    bucket, sampler = recipe.data.bucket, sampler_of(recipe)
    text = (stock_call or USE).format(
        pipeline=pipeline,
        imports=OWN_VAE if patch_decoder else "",
        width=bucket.width,
        height=bucket.height,
        num_frames=bucket.num_frames,
        num_steps=sampler.num_steps,
        guidance=sampler.guidance,
    )
    text += PATCH_DECODER if patch_decoder else ""
    prompts = recipe.data.prompts
    if prompts is None:
        return text
    if stock_call is not None:
        return text + FAMILY_PROMPTS.format(pipeline=pipeline, encoder=prompts.encoder)
    if prompts.image_token_stride is None:
        return text + PROMPTS.format(encoder=prompts.encoder)
    return text + SEEN_PROMPTS.format(encoder=prompts.encoder, stride=prompts.image_token_stride)


def _licence(recipe: Recipe) -> str:
    sources = (f"- {source.kind}: {source.terms()}" for source in recipe.data.sources)
    model = recipe.model
    return LICENCE.format(teacher=model.teacher, vae=model.vae, sources="\n".join(sources))


def _sampler(sampler: SamplerConfig) -> str:
    timesteps = NUM_TRAIN_TIMESTEPS * sigma_grid(sampler.num_steps, sampler.shift)[:-1]
    listed = ", ".join(f"{timestep:.1f}" for timestep in timesteps.tolist())
    guidance = f", guidance {sampler.guidance:g} (Ho)" if sampler.guidance != 1 else ""
    return f"{sampler.name}, {sampler.num_steps} steps at timesteps {listed}{guidance}"


def _measured(run: RunDirectory, cycle: int) -> Iterator[str]:
    """Yield the metrics of the cycle as a table and, for a finished run, its evaluation."""
    row = next((row for row in run.history() if row["step"] == cycle), None)
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
