"""A stock pipeline of diffusers makes our videos from what a run exports."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
)
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from magicdistill.models.diffusion.flow import sigma_grid
from magicdistill.models.diffusion.guidance import guided
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import sample
from magicdistill.models.metrics.fidelity import psnr_db
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.export.diffusers_pipeline import (
    ENCODERS,
    stock_autoencoder,
    stock_scheduler,
    write_stock_parts,
)
from magicdistill.platform.export.export import export
from magicdistill.platform.export.pretrained_model import ASSETS, find_pretrained
from magicdistill.platform.inference.orders import Order, plan_windows
from magicdistill.platform.inference.sample_video import VideoSampler
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.networks import network

TINY = ASSETS / "portrait-tiny"
SHAPE = (16, 5, 8, 8)
PICTURE = np.asarray(Image.open(TINY / "face.png").convert("RGB").resize((64, 64))).copy()
LATENTS_ATOL, PIXELS_ATOL = 1e-4, 1e-3


def plain_vae() -> VideoVae:
    """The shipped autoencoder with statistics that matter and without the patch decoder."""
    torch.manual_seed(0)
    autoencoder = VideoVae.load(TINY / "vae").autoencoder
    return VideoVae(autoencoder, torch.randn(16), 0.5 + torch.rand(16)).eval()


@pytest.fixture(scope="module", params=["patch decoder", "own decoder"])
def folder(request, tmp_path_factory) -> Path:
    """What a run exports whose generator is the shipped student, with one or the other VAE."""
    path = tmp_path_factory.mktemp("export")
    overrides = ["--model.teacher", str(TINY / "student-4step"), "--engine.kind", "torch"]
    if request.param == "own decoder":
        plain_vae().save(path / "plain")
        overrides += ["--model.vae", str(path / "plain")]
    recipe = load_recipe("portrait-tiny-smoke", overrides)
    run = RunDirectory.create(path, recipe)
    generator = recipe.method.build(recipe.model, WHOLE).modules["generator"]
    optimizer = recipe.schedule.optimizers["generator"]
    engine = build_engine(recipe.engine, generator, optimizer, num_micro_batches=1)
    Checkpoints(run.checkpoints, keep=1).save(1, {"generator": engine}, None)
    export(str(run.path), path / "model", dtype="fp32")
    return path / "model"


def call_of_the_card(folder: Path, latents: Tensor | None = None) -> Tensor:
    """Run the Python of the model card as it stands there, or with its noise replaced."""
    match = re.search("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert match
    picture = folder.parent / "first.png"
    Image.fromarray(PICTURE).save(picture)
    code = match[1].replace("this folder", str(folder)).replace("first frame", str(picture))
    if latents is not None:
        code = code.replace("generator=torch.Generator().manual_seed(0)", "latents=latents")
        assert "latents=latents" in code
    names: dict[str, Any] = {"latents": latents}
    with torch.no_grad():
        exec(code, names)
    return names["video"]


def our_frames(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return our sampler's frames, its noise and the image's latents."""
    sampler = VideoSampler(find_pretrained(str(folder)), "cpu")
    order = Order(Path(), Path())
    windows = plan_windows(order, sampler.model.buckets[0])
    frames = next(iter(sampler.parts(PICTURE, order, windows)))
    first = rearrange(torch.from_numpy(PICTURE).float() / 127.5 - 1, "y x c -> 1 c 1 y x")
    noise = Rng(0, -1, -1, [0]).normal("noise", SHAPE)
    return frames, noise, sampler.vae.encode(first)


def test_the_call_on_the_card_gives_our_frames(folder):
    ours, noise, prior = our_frames(folder)
    stock = call_of_the_card(folder, (noise - 0.001 * prior) / 0.999)
    torch.testing.assert_close(stock.clamp(-1, 1), ours, atol=PIXELS_ATOL, rtol=0)


@pytest.mark.parametrize("folder", ["patch decoder"], indirect=True)
def test_the_call_as_it_stands_runs_and_plain_noise_gives_nearly_our_frames(folder):
    ours, noise, _ = our_frames(folder)
    assert psnr_db(call_of_the_card(folder, noise).clamp(-1, 1), ours) > 40
    assert psnr_db(call_of_the_card(folder).clamp(-1, 1), ours) < 40  # other noise


def stock_pipeline(folder: Path) -> Any:
    pipeline: Any = HunyuanVideoImageToVideoPipeline.from_pretrained(
        folder, **dict.fromkeys(ENCODERS)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_pipeline_itself_returns_our_frames_from_the_fifth_on(folder):
    ours, noise, prior = our_frames(folder)
    found = stock_pipeline(folder)(
        Image.fromarray(PICTURE),
        **load_file(folder / "null_prompt.safetensors"),
        **{"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 4},
        guidance_scale=1.0,
        latents=(noise - 0.001 * prior) / 0.999,
        output_type="pt",
    )
    stock = rearrange(found.frames, "b t c y x -> b c t y x") * 2 - 1
    torch.testing.assert_close(stock, ours[:, :, 4:], atol=PIXELS_ATOL, rtol=0)


@pytest.mark.parametrize("folder", ["patch decoder"], indirect=True)
def test_without_our_decoder_the_pipeline_is_refused(folder, monkeypatch):
    name = "magicdistill.platform.export.patch_autoencoder"
    assert name in (folder / "model_index.json").read_text()
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=f"{name} is not one of the libraries"):
        stock_pipeline(folder)


@pytest.mark.parametrize("name", ["euler", "consistency"])
def test_prompts_guidance_and_fresh_noise_have_their_place_in_the_stock_call(name):
    vae, config = plain_vae(), SamplerConfig(name=name, num_steps=3, shift=3, guidance=2.5)
    transformer = load_transformer(TINY / "teacher")
    parts: Any = dict.fromkeys(ENCODERS) | {"transformer": transformer}
    parts |= {"vae": stock_autoencoder(vae), "scheduler": stock_scheduler(config)}
    pipeline: Any = HunyuanVideoImageToVideoPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    first = torch.from_numpy(PICTURE).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    prior, mask = vae.encode(first), torch.tensor([[True, True, True, False]])
    torch.manual_seed(1)
    prompt, null = (
        Conditions(torch.randn(1, 4, 64), mask, torch.randn(1, 64), prior) for _ in range(2)
    )
    noise, state = torch.randn(1, *SHAPE), {}

    torch.manual_seed(2)
    pipeline(
        Image.fromarray(PICTURE),
        **{"prompt_embeds": prompt.text, "negative_prompt_embeds": null.text},
        **{"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask},
        **{"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": null.pooled},
        **{"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 3},
        true_cfg_scale=config.guidance,
        latents=(noise - 0.001 * prior) / 0.999,
        callback_on_step_end=lambda pipeline, step, timestep, now: state.update(now) or now,
    )
    torch.manual_seed(2)
    ours = sample(
        guided(VelocityModel(transformer), config.guidance, null, embeds=False),
        noise,
        sigma_grid(config.num_steps, config.shift),
        prompt,
        sampler=config.name,
        fresh_noise=lambda step: torch.randn_like(noise),
    )
    torch.testing.assert_close(state["latents"], ours, atol=LATENTS_ATOL, rtol=0)


@torch.no_grad()
def test_skyreels_is_written_as_its_own_pipeline(tmp_path):
    transformer = network(in_channels=8, image_condition_type=None)
    write_stock_parts(tmp_path, transformer, SamplerConfig(name="euler", num_steps=2), None, None)
    transformer.save_pretrained(tmp_path / "transformer")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "HunyuanSkyreelsImageToVideoPipeline"
    assert "image_processor" not in index
    assert load_transformer(tmp_path / "transformer").config["in_channels"] == 8


@torch.no_grad()
def test_hunyuan_video_1_5_is_a_stock_pipeline_with_equal_frames(tmp_path):
    """Random weights; the tokens of the image are those of a small SigLIP, as is the pipeline's."""
    torch.manual_seed(0)
    shapes = PRESETS["hunyuan15-tiny"]
    sides = shapes.transformer.model_copy(update={"target_size": 64})
    transformer, config = (
        build_transformer(sides),
        SamplerConfig(name="euler", num_steps=3, shift=5),
    )
    build_autoencoder(shapes.vae).save_pretrained(tmp_path / "random")
    vae = VideoVae.load(tmp_path / "random")
    layers: Any = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    seen = SiglipVisionModel(
        SiglipVisionConfig(hidden_size=32, image_size=32, patch_size=16, **layers)
    ).eval()
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    picture = Image.fromarray(PICTURE)
    first = rearrange(torch.from_numpy(PICTURE).float() / 127.5 - 1, "y x c -> 1 c 1 y x")
    pixels = processor.preprocess(images=picture, return_tensors="pt")
    null = Conditions.null(vae.encode(first), num_tokens=4, text_dim=64, pooled_dim=0)
    write_stock_parts(tmp_path, transformer, config, vae, null)
    transformer.save_pretrained(tmp_path / "transformer")

    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline: Any = HunyuanVideo15ImageToVideoPipeline.from_pretrained(
        tmp_path, image_encoder=seen, feature_extractor=processor, **encoders
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 32, 5, 4, 4)
    found = pipeline(
        picture,
        **load_file(tmp_path / "null_prompt.safetensors"),
        **{"num_frames": 17, "num_inference_steps": 3, "latents": noise, "output_type": "pt"},
    )
    tokens = replace(null, image_tokens=seen(**pixels).last_hidden_state)
    grid = sigma_grid(config.num_steps, config.shift)
    ours = vae.decode(sample(VelocityModel(transformer), noise, grid, tokens))
    stock = rearrange(found.frames, "b t c y x -> b c t y x") * 2 - 1
    torch.testing.assert_close(stock, ours, atol=PIXELS_ATOL, rtol=0)
    without = vae.decode(sample(VelocityModel(transformer), noise, grid, null))
    assert (without - ours).abs().max() > 10 * PIXELS_ATOL, "the pipeline sees the first frame"


def test_files_are_safe_and_the_pipeline_names_its_parts(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".md", ".safetensors", ".yaml"}
    assert set(load_file(folder / "null_prompt.safetensors")) == {
        "prompt_embeds",
        "prompt_attention_mask",
        "pooled_prompt_embeds",
    }
    texts = [path.read_text() for path in folder.rglob("*.json")]
    assert not any(str(folder.parent) in text or str(TINY) in text for text in texts)
