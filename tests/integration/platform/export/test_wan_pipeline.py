"""diffusers' own pipeline of Wan makes our frames from what runs of Wan export."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.autoencoder.vae import build_autoencoder
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import PRESETS
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.export.export import ExportError, export
from magicdistill.platform.export.pretrained_model import ASSETS, find_pretrained
from magicdistill.platform.inference.orders import Order, plan_windows
from magicdistill.platform.inference.sample_video import VideoSampler
from magicdistill.platform.runs.run_directory import RunDirectory

PICTURE = np.asarray(
    Image.open(ASSETS / "portrait-tiny" / "face.png").convert("RGB").resize((64, 64))
).copy()


def run_of(folder: Path, name: str, seed: int, *changes: str) -> Path:
    """A run whose generator is a tiny Wan with random weights."""
    vae = folder / "vae"
    if not vae.exists():
        torch.manual_seed(7)
        build_autoencoder(PRESETS["wan-tiny"].vae).save_pretrained(vae)
    overrides = ["--model.preset", "wan-tiny", "--model.teacher", "null", "--model.vae", str(vae)]
    overrides += ["--engine.kind", "torch", "--name", name, *changes]
    for section in ("data", "evaluation.data"):
        overrides += [f"--{section}.null_text.num_tokens", "512"]
        overrides += [f"--{section}.null_text.pooled_dim", "0"]
    recipe = load_recipe("portrait-tiny-smoke", overrides)
    run = RunDirectory.create(folder, recipe)
    torch.manual_seed(seed)
    generator = recipe.method.build(recipe.model, WHOLE).modules["generator"]
    optimizer = recipe.schedule.optimizers["generator"]
    engine = build_engine(recipe.engine, generator, optimizer, num_micro_batches=1)
    Checkpoints(run.checkpoints, keep=1).save(1, {"generator": engine}, None)
    return run.path


def our_frames(folder: Path) -> torch.Tensor:
    sampler = VideoSampler(find_pretrained(str(folder)), "cpu")
    order = Order(Path(), Path())
    windows = plan_windows(order, sampler.model.buckets[0])
    return next(iter(sampler.parts(PICTURE, order, windows)))


def frames_of_the_card(folder: Path) -> torch.Tensor:
    """Run the Python of the model card with our noise."""
    match = re.search("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert match
    picture = folder.parent / "first.png"
    Image.fromarray(PICTURE).save(picture)
    code = match[1].replace("this folder", str(folder)).replace("first frame", str(picture))
    code = code.replace("generator=torch.Generator().manual_seed(0)", "latents=latents")
    names = {"latents": Rng(0, -1, -1, [0]).normal("noise", (16, 5, 8, 8))}
    exec(code, names)
    return rearrange(names["video"], "b t c y x -> b c t y x") * 2 - 1


def test_the_pipeline_gives_our_frames(tmp_path: Path) -> None:
    run = run_of(tmp_path, "one", 1)
    export(str(run), tmp_path / "model", dtype="fp32")
    ours = our_frames(tmp_path / "model")
    assert ours.std() > 0.01
    stock = frames_of_the_card(tmp_path / "model")
    torch.testing.assert_close(stock, ours, atol=1e-3, rtol=0)


def test_both_experts_sample_in_one_pipeline_and_each_its_own_steps(tmp_path: Path) -> None:
    high = run_of(tmp_path, "high", 1, "--method.interval.min", "0.9")
    low = run_of(tmp_path, "low", 2, "--method.interval.max", "0.9")
    export(str(high), tmp_path / "both", dtype="fp32", low_noise=str(low))
    export(str(high), tmp_path / "alone", dtype="fp32")
    ours = our_frames(tmp_path / "both")
    torch.testing.assert_close(frames_of_the_card(tmp_path / "both"), ours, atol=1e-3, rtol=0)
    assert (ours - our_frames(tmp_path / "alone")).abs().max() > 1e-2
    model = find_pretrained(str(tmp_path / "both"))
    assert (model.low_noise, model.boundary) == (tmp_path / "both" / "transformer_2", 0.9)


@pytest.mark.parametrize("interval", [("min", "0.9"), ("max", "0.8")])
def test_runs_that_are_not_of_two_experts_are_not_joined(tmp_path: Path, interval) -> None:
    high = run_of(tmp_path, "high", 1, "--method.interval.min", "0.9")
    other = run_of(tmp_path, "other", 2, f"--method.interval.{interval[0]}", interval[1])
    with pytest.raises(ExportError, match=r"those of the exported run 0\.9 to 1; give two runs"):
        export(str(high), tmp_path / "both", dtype="fp32", low_noise=str(other))
    assert not (tmp_path / "both").exists()
