"""Training, pairs, decoding and offload: the platform's own code on a GPU, without Ray."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gpu_parts.blocks import cleaned_up, inputs_of, random_network
from gpu_parts.results import Bench, Row, timed
from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.offload import offload_layers
from magicdistill.models.networks.presets import PRESETS
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.data.noise_data_pairs import PairGenerator
from magicdistill.platform.data.stream_source import open_batches
from magicdistill.platform.inference.clip_generator import ClipGenerator
from magicdistill.platform.inference.variants import Variant
from magicdistill.platform.planning.gpu_rates import GIB
from magicdistill.platform.planning.plan import RESERVE_BYTES, plan
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker

ROOT = Path(__file__).parents[2]
MIDDLE = "bench-1.6b"
"""A preset as wide as that of 13B, with 2 double-stream and 6 single-stream blocks."""
BUCKET = {"num_frames": 65, "height": 256, "width": 448}
NUM_CYCLES = 3
LOSS_TOLERANCE = 0.02
"""Largest relative difference of a loss on the GPU to that on the processor, both in float32."""


def measure_training(bench: Bench) -> Iterator[Row]:
    """Yield three cycles of both engines on one rank, with their memory against the plan's."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    backend = "cpu:gloo,cuda:nccl" if bench.on_gpu else "gloo"
    meeting = bench.folder / "meeting"
    dist.init_process_group(backend, f"file://{meeting}", rank=0, world_size=1)
    try:
        for name, engine in {
            "ZeRO-3": {"kind": "deepspeed", "zero_stage": 3},
            "torch engine": {"kind": "torch"},
        }.items():
            with cleaned_up():
                yield three_cycles(bench, name, engine)
    finally:
        dist.destroy_process_group()


def three_cycles(bench: Bench, name: str, engine: dict[str, Any]) -> Row:
    """Train and compare the peak of memory with the plan."""
    recipe = training_recipe(bench, engine | {"precision": "bf16"})
    folder = bench.folder / name.replace(" ", "-")
    cache = write_cache(folder / "cache", recipe)
    run = RunDirectory.create(folder, recipe)
    bench.reset_peak()
    worker = Worker(run, cache, None, rank=0, world_size=1, device=bench.device)
    start_s = bench.now_s()
    num_cycles = 1 if bench.is_tiny else NUM_CYCLES
    worker.loop.run(0, num_cycles, [])
    seconds = (bench.now_s() - start_s) / num_cycles
    peak, planned = bench.peak(), plan(recipe, mfu=0.4).gpu_bytes - RESERVE_BYTES
    note = f"{seconds:.3g} s a cycle; planned {planned / GIB:.2f} GiB"
    if peak is not None:
        note += f", {peak / planned:.2f} of it used"
    return Row(f"{name}, {recipe.model.preset}", forward_s=seconds, peak_bytes=peak, note=note)


def training_recipe(bench: Bench, engine: dict[str, Any]) -> Recipe:
    """Return portrait-tiny's recipe with random weights, at full size of a middle preset."""
    values = load_recipe("portrait-tiny").model_dump(exclude={"engine"})
    values |= {"engine": engine, "evaluation": None, "health": {}}
    values["method"]["warmup_cycles"] = 0
    values["model"] = {"preset": "nano"}
    values["schedule"] |= {"batch_size": 1, "num_cycles": NUM_CYCLES, "sample_every": None}
    values["cluster"] |= {"num_workers": 1, "gpus_per_worker": int(bench.on_gpu)}
    values["kernels"] = {"attention": "auto", "recompute_blocks": "full"}
    if not bench.is_tiny:
        shapes = PRESETS["magic141-13b"]
        assert isinstance(shapes.transformer, HunyuanVideoConfig)
        fewer = shapes.transformer.model_copy(update={"num_layers": 2, "num_single_layers": 6})
        PRESETS.register(MIDDLE, shapes.model_copy(update={"transformer": fewer}))
        values["model"] = {"preset": MIDDLE}
        values["data"]["bucket"] |= BUCKET
    return Recipe.model_validate(values)


def write_cache(folder: Path, recipe: Recipe) -> AnyPath:
    """Write random latents of the recipe's shape."""
    bucket, preset = recipe.data.bucket, recipe.model.shapes
    shapes, vae = preset.transformer, preset.vae
    latents = (shapes.latent_channels, vae.latent_frames(bucket.num_frames))
    sides = (vae.latent_side(bucket.height), vae.latent_side(bucket.width))
    rows = [
        LatentRow(
            RowFacts(str(i), str(i), str(i), "", "", "", 0, False), torch.randn(*latents, *sides)
        )
        for i in range(4)
    ]
    write_shard(folder, rows)
    text = NullText(
        num_tokens=shapes.num_text_tokens,
        token_dim=shapes.text_embed_dim,
        pooled_dim=shapes.pooled_projection_dim,
    )
    return publish(folder, list(committed_rows(folder).values()), text)


def measure_losses(bench: Bench) -> Iterator[Row]:
    """Yield whether portrait-tiny has the losses on the GPU that it has on the processor."""
    recipe = tiny_recipe()
    cache = write_cache(bench.folder / "losses-cache", recipe)
    found = {}
    for place in ("cpu", bench.device.type):
        run = RunDirectory.create(bench.folder / "losses", recipe, f"on-{place}")
        worker = Worker(run, cache, None, rank=0, world_size=1, device=place)
        found[place] = [worker.loop.cycle(cycle) for cycle in range(2)]
    losses = [
        (row[name], other[name])
        for row, other in zip(found["cpu"], found[bench.device.type], strict=True)
        for name in row
        if name in ("generator/dmd", "generator/adversarial", "critic/fake_score")
    ]
    worst = max(abs(a - b) / max(abs(a), 1e-6) for a, b in losses)
    problem = None if worst <= LOSS_TOLERANCE else f"losses differ by {worst:.2%}"
    note = f"{len(losses)} losses, the largest difference {worst:.2g} of one"
    yield Row("portrait-tiny on both devices", note=note, problem=problem)


def tiny_recipe() -> Recipe:
    """Return portrait-tiny from its embedded weights, every cycle with both roles."""
    values = load_recipe("portrait-tiny").model_dump(exclude={"engine"})
    values |= {"engine": {"kind": "torch"}, "evaluation": None, "health": {}}
    values["method"]["warmup_cycles"] = 0
    values["schedule"] |= {"batch_size": 2, "sample_every": None}
    values["cluster"]["num_workers"] = 1
    return Recipe.model_validate(values)


def measure_pairs(bench: Bench) -> Iterator[Row]:
    """Yield noise-data pairs by the class whose actors make them, and decoded held-out clips."""
    recipe = pairs_recipe(bench)
    cache = write_cache(bench.folder / "pairs-cache", recipe)
    alone = recipe.model_copy(update={"pairs": None})
    batch = open_batches(alone, cache, rank=0, world_size=1, device="cpu")(0, 0)
    make = PairGenerator(recipe)
    made = make(batch).pair
    assert made is not None
    finite = bool(torch.isfinite(made.video).all())
    seconds = timed(bench, partial(make, batch))
    note = f"{len(made.video) / seconds:.3g} pairs/s"
    yield Row("pairs", forward_s=seconds, note=note, problem=None if finite else "not finite")
    generator = ClipGenerator(recipe.model.model_dump_json())
    assert recipe.method.trained_sampler is not None
    teacher = Variant("teacher", recipe.model.teacher, recipe.method.trained_sampler)
    clips, *_ = generator.make(teacher, cache, range(2), seed=0)
    yield Row("held-out clips", note=f"{tuple(clips.shape)} by {generator.device}")


def pairs_recipe(bench: Bench) -> Recipe:
    """Return a recipe of one step whose pairs the embedded teacher makes in two."""
    file = bench.folder / "pairs.yaml"
    file.write_text(
        "extends: portrait-tiny-smoke\nevaluation: null\n"
        "method: {name: magic, sampler: {num_steps: 1}, warmup_cycles: 0, pairs: {num_cycles: 8}}\n"
        "pairs: {generator: assets/portrait-tiny/teacher, sampler: {num_steps: 2}}\n"
        f"cluster: {{num_workers: 1, gpus_per_worker: {int(bench.on_gpu)}}}\n"
        "engine: {kind: torch, precision: fp32}\n"
    )
    return load_recipe(str(file))


def measure_vae(bench: Bench) -> Iterator[Row]:
    """Yield a decoding in tiles, at full size."""
    vae = VideoVae(build_autoencoder(PRESETS[bench.block_preset].vae)).to(bench.device)
    vae.enable_tiling(**({"tile_px": 64, "overlap_px": 16} if bench.is_tiny else {}))
    channels = PRESETS[bench.block_preset].transformer.latent_channels
    latents = torch.randn(1, channels, *bench.latents, device=bench.device)
    bench.reset_peak()
    start_s = bench.now_s()
    with torch.inference_mode():
        pixels = vae.decode(latents)
    seconds = bench.now_s() - start_s
    note = "x".join(map(str, pixels.shape[2:]))
    yield Row("VAE decoding in tiles", forward_s=seconds, peak_bytes=bench.peak(), note=note)


def measure_offload(bench: Bench) -> Iterator[Row]:
    """Yield a forward whose layers stay in host memory, and whether its output is the same."""
    host = replace(bench, device=torch.device("cpu"))
    network = random_network(host, "portrait-tiny").eval().requires_grad_(False)
    inputs = inputs_of(bench, "portrait-tiny")
    moved = copy.deepcopy(network).to(bench.device)
    with torch.no_grad():
        expected = moved(*inputs)
        offload_layers(network.transformer, bench.device)
        seconds = timed(bench, lambda: network(*inputs))
        found = network(*inputs)
    gap = float(nn.functional.l1_loss(found, expected) / expected.abs().mean())
    problem = None if gap < 0.01 else f"the output differs by {gap:.1%}"
    note = f"differs by {gap:.2g}"
    yield Row("layers in host memory", forward_s=seconds, note=note, problem=problem)


def measure_jobs(bench: Bench) -> Iterator[Row]:
    """Yield a whole run of portrait-tiny-smoke on the GPU under Ray, and a video of its model."""
    runs = bench.folder / "runs"
    shares = {
        "cluster.gpus_per_worker": 0.3,
        "data.encoding.num_gpus_per_actor": 0.2,
        "evaluation.actor_gpus": 0.2,
        "cluster.num_workers": 1,
    }
    flags = [word for name, value in shares.items() for word in (f"--{name}", str(value))]
    train = ["jobs/distill.py", "--recipe", "portrait-tiny-smoke", "--runs", str(runs), *flags]
    film = bench.folder / "film.mp4"
    sample = ["jobs/sample.py", "--image", "assets/portrait-tiny/face.png", "--out", str(film)]
    for name, command in {"distill under Ray": train, "sample": sample}.items():
        start_s = bench.now_s()
        made = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        lines = (made.stderr or made.stdout).strip().splitlines() or [""]
        problem = f"exit {made.returncode}: {lines[-1]}" if made.returncode else None
        yield Row(name, forward_s=bench.now_s() - start_s, problem=problem)
