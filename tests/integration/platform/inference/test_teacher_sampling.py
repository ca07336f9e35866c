"""A teacher is sampled as diffusers' own pipeline samples it, with its published settings."""

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from PIL import Image
from torch import Tensor

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.config import TeacherSampler
from magicdistill.platform.config.teacher_sampling import published_sampler
from magicdistill.platform.export.diffusers_pipeline import (
    ENCODERS,
    stock_autoencoder,
    stock_scheduler,
)
from magicdistill.platform.inference.generate import generate
from tests.tiny import tiny_shapes

TINY = Path(__file__).parents[4] / "assets" / "portrait-tiny"
SHAPE = (16, 2, 4, 4)
LAYOUTS: dict[str, tuple[type, dict[str, Any]]] = {
    "latent_concat": (HunyuanVideoImageToVideoPipeline, {"guidance_embeds": False}),
    "token_replace": (HunyuanVideoImageToVideoPipeline, {"guidance_embeds": True}),
    "skyreels": (HunyuanSkyreelsImageToVideoPipeline, {"guidance_embeds": True}),
}


def teacher(layout: str) -> tuple[HunyuanVideoTransformer3DModel, TeacherSampler]:
    """Return a small network of a layout, and its published sampler."""
    shapes = tiny_shapes(latent_channels=16, layout=layout, **LAYOUTS[layout][1])
    torch.manual_seed(0)
    network = HunyuanVideoTransformer3DModel(**shapes.arguments()).eval()
    sampler = published_sampler(dict(network.config) | {"_class_name": type(network).__name__})
    assert sampler is not None
    return network, sampler


def picture() -> Image.Image:
    return Image.open(TINY / "face.png").convert("RGB").resize((32, 32))


def prompts(prior: Tensor) -> tuple[Conditions, Conditions]:
    """Return conditions of a prompt and of the null prompt."""
    torch.manual_seed(1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    first, second = (
        Conditions(torch.randn(1, 4, 6), mask, torch.randn(1, 6), prior) for _ in range(2)
    )
    return first, second


def stock_pipeline(layout: str, network: Any, sampler: TeacherSampler) -> Any:
    kind = LAYOUTS[layout][0]
    encoders = {name: None for name in ENCODERS if name in signature(kind).parameters}
    whole = VideoVae.load(TINY / "vae").autoencoder
    vae = stock_autoencoder(VideoVae(whole, torch.zeros(16), torch.ones(16)).eval())
    pipeline: Any = kind(
        transformer=network, vae=vae, scheduler=stock_scheduler(sampler), **encoders
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded(pipeline: Any, layout: str) -> Tensor:
    """Return the picture's latents as the pipeline has them: SkyReels' draws from the encoder."""
    pixels = torch.from_numpy(np.asarray(picture()).copy()).float() / 127.5 - 1
    posterior = pipeline.vae.encode(pixels.permute(2, 0, 1)[None, :, None]).latent_dist
    drawn = layout == "skyreels"
    latents = posterior.sample(torch.Generator().manual_seed(7)) if drawn else posterior.mode()
    return latents * pipeline.vae.config.scaling_factor


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_teacher_is_sampled_as_diffusers_samples_it(layout: str) -> None:
    network, sampler = teacher(layout)
    pipeline = stock_pipeline(layout, network, sampler)
    prompt, null = prompts(encoded(pipeline, layout))
    noise, state = Rng(3, -1, -1, [0]).normal("noise", SHAPE), dict[str, Tensor]()
    pipeline(
        picture(),
        **{"prompt_embeds": prompt.text, "negative_prompt_embeds": null.text},
        prompt_attention_mask=prompt.text_mask,
        negative_prompt_attention_mask=null.text_mask,
        **{"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": null.pooled},
        **{"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": sampler.num_steps},
        guidance_scale=sampler.guidance,
        true_cfg_scale=sampler.true_guidance,
        latents=noise,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
        callback_on_step_end=lambda pipeline, step, timestep, now: state.update(now) or now,
    )
    ours = generate(
        VelocityModel(network), sampler, prompt, SHAPE, seed=3, positions=[0], null=null
    )
    torch.testing.assert_close(ours, state["latents"], atol=1e-4, rtol=1e-4)


def test_the_share_of_the_image_changes_what_a_teacher_makes() -> None:
    noise, prior = torch.randn(1, *SHAPE), torch.randn(1, 16, 1, 4, 4)
    sampler = TeacherSampler(image_start=0.001)
    assert not torch.equal(sampler.start(noise, prior), noise)
    assert torch.equal(sampler.start(noise, None), noise)
    assert torch.equal(TeacherSampler().start(noise, prior), noise)
