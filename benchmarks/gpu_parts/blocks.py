"""Kernels of attention, rates of everything else, blocks and a whole network."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoRotaryPosEmbed,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor, nn
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from gpu_parts.results import Bench, Round, Row, median_round, timed
from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.attention import demand_kernel, fastest_kernel, set_kernels
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.backbones.joint_attention import JointAttention, attend
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig, Recompute
from magicdistill.models.networks.lora import checkpointed
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.sequence_parallel import WHOLE_SEQUENCE
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.planning.flops import ATTENTION_BACKWARD, operations

RECOMPUTED: dict[Recompute, str] = {
    "none": "",
    "selective": ", recomputed but for attention",
    "full": ", recomputed",
}
BLOCKS = {"double": HunyuanVideoTransformerBlock, "single": HunyuanVideoSingleTransformerBlock}
TOLERANCE = 0.05
"""Largest difference to attention in float32, of outputs and gradients of about unit size."""
ATTENTION, LINEAR, MEMORY = "attention alone", "product of matrices", "sum of two tensors"


def measure_kernels(bench: Bench) -> Iterator[Row]:
    """Yield each kernel of attention on its own, at full length."""
    for kernel in bench.kernels:
        yield attempt(ATTENTION, kernel, partial(attention, bench, kernel))


def measure_rates(bench: Bench) -> Iterator[Row]:
    """Yield a product of matrices as in an MLP, and an operation that only moves bytes."""
    sample = bench.sample(bench.block_preset)
    tokens, width = sample.video_tokens, sample.model_dim
    video, weight = bench.randn(tokens, width), bench.randn(width, 4 * width)
    seconds = timed(bench, lambda: video @ weight)
    yield Row(LINEAR, forward_s=seconds, operations=8 * tokens * width**2)
    other, total = torch.ones_like(video), torch.empty_like(video)
    seconds = timed(bench, lambda: torch.add(video, other, out=total))
    speed = 3 * video.nbytes / seconds
    yield Row(MEMORY, forward_s=seconds, note=f"{speed / 1e12:.3g} TB/s")


def measure_blocks(bench: Bench) -> Iterator[Row]:
    """Yield both blocks under each kernel, their activations kept and recomputed."""
    for kernel in bench.kernels:
        for kind in BLOCKS:
            for recompute, how in RECOMPUTED.items():
                name = f"{kind} block{how}"
                yield attempt(name, kernel, partial(block, bench, name, kind, kernel, recompute))


def measure_compiled(bench: Bench) -> Iterator[Row]:
    """Yield a single-stream block that torch.compile has compiled, under the fastest kernel."""
    kernel = fastest_kernel(bench.kernels)
    name = "single block, compiled"
    yield attempt(name, kernel, partial(block, bench, name, "single", kernel, compiled=True))


def measure_whole(bench: Bench) -> Iterator[Row]:
    """Yield the largest preset that fits, its blocks recomputed, under the fastest kernel."""
    kernel = fastest_kernel(bench.kernels)
    for preset in bench.presets:
        row = attempt(preset, kernel, partial(whole, bench, preset, kernel))
        yield row
        if row.problem is None:
            return


@contextmanager
def cleaned_up() -> Iterator[None]:
    """Take back torch's own flash kernel afterwards, and free memory."""
    try:
        yield
    finally:
        if current_flash_attention_impl() is not None:
            restore_flash_attention_impl()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def attempt(what: str, kernel: AttentionKernel, call: Callable[[], Row]) -> Row:
    """Measure, or report a kernel that is missing here and a size that does not fit."""
    with cleaned_up():
        try:
            demand_kernel(kernel)
            return call()
        except torch.OutOfMemoryError:
            return Row(what, kernel, problem="does not fit in this GPU's memory")
        except (RuntimeError, ValueError) as error:
            return Row(what, kernel, problem=str(error).splitlines()[0])


def attention(bench: Bench, kernel: AttentionKernel) -> Row:
    """Measure attention, and compare it with attention in float32 where it is short."""
    shapes, sample = bench.block_shapes, bench.sample(bench.block_preset)
    heads, width = shapes.num_attention_heads, shapes.attention_head_dim
    difference = largest_difference(bench, kernel, heads, width)
    if difference > TOLERANCE:
        raise ValueError(f"differs from attention in float32 by {difference:.3g}")
    tokens = sample.video_tokens + shapes.num_text_tokens
    q, k, v = (bench.randn(1, tokens, heads, width).requires_grad_() for _ in range(3))
    found = median_round(bench, lambda: attend(q, k, v, None, kernel), repeats=bench.repeats)
    forward = 4 * tokens**2 * heads * width
    return Row(
        ATTENTION,
        kernel,
        found.forward_s,
        found.backward_s,
        operations=(1 + ATTENTION_BACKWARD) * forward,
        note=f"differs from float32 by {difference:.2g}",
    )


def largest_difference(bench: Bench, kernel: AttentionKernel, heads: int, width: int) -> float:
    """Return by how much output and gradients differ from those of attention in float32."""
    torch.manual_seed(0)
    values = [bench.randn(1, 256, heads, width) for _ in range(3)]
    results: list[list[Tensor]] = []
    for dtype, name in ((torch.float32, "sdpa"), (bench.dtype, kernel)):
        inputs = [value.to(dtype).requires_grad_() for value in values]
        out = attend(*inputs, None, name)  # type: ignore[arg-type]  three tensors
        gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
        results.append([out.float(), *(gradient.float() for gradient in gradients)])
    return max(float((a - b).abs().max().detach()) for a, b in zip(*results, strict=True))


def block(
    bench: Bench,
    name: str,
    kind: str,
    kernel: AttentionKernel,
    recompute: Recompute = "none",
    *,
    compiled: bool = False,
) -> Row:
    """Measure one block on its own."""
    shapes = bench.block_shapes
    heads, head_dim = shapes.num_attention_heads, shapes.attention_head_dim
    with bench.device:
        module = BLOCKS[kind](heads, head_dim, mlp_ratio=4.0).to(bench.dtype)
        grid = torch.empty(1, 1, *bench.latents)
        rotary = HunyuanVideoRotaryPosEmbed(shapes.patch[1], 1, list(shapes.rope_axes_dim))(grid)
    processor: Any = JointAttention(kernel, WHOLE_SEQUENCE)
    module.attn.set_processor(processor)
    if compiled:
        module.compile()
    counts = {"num_layers": int(kind == "double"), "num_single_layers": int(kind == "single")}
    sample = bench.sample(bench.block_preset, **counts)
    video = bench.randn(1, sample.video_tokens, sample.model_dim).requires_grad_()
    text = bench.randn(1, shapes.num_text_tokens, sample.model_dim).requires_grad_()
    embedding = bench.randn(1, sample.model_dim)
    keeps_attention = recompute == "selective"
    run = module
    if recompute != "none":
        run = partial(checkpointed, module, keeps_attention=keeps_attention)

    def forward() -> Tensor:
        module.zero_grad(set_to_none=True)
        return torch.cat(run(video, text, embedding, None, rotary), dim=1)

    found = median_round(bench, forward, repeats=bench.repeats)
    return trained_row(bench, name, kernel, found, sample, recompute)


def whole(bench: Bench, preset: str, kernel: AttentionKernel) -> Row:
    """Measure a whole transformer once, its blocks recomputed."""
    network = random_network(bench, preset)
    set_kernels(network, KernelsConfig(attention=kernel, recompute_blocks="full"))
    x_sigma, sigma, conditions = inputs_of(bench, preset)
    found = median_round(bench, lambda: network(x_sigma, sigma, conditions), repeats=0)
    return trained_row(bench, preset, kernel, found, bench.sample(preset), "full")


def trained_row(
    bench: Bench,
    name: str,
    kernel: AttentionKernel,
    found: Round,
    sample: Sample,
    recompute: Recompute,
) -> Row:
    """Return the row of a forward and a backward through all weights."""
    return Row(
        name,
        kernel,
        found.forward_s,
        found.backward_s,
        found.saved_bytes if bench.on_gpu else None,
        found.peak_bytes if bench.on_gpu else None,
        operations(sample, ForwardPass("", "", "weights"), recompute=recompute),
    )


def random_network(bench: Bench, preset: str) -> VelocityModel:
    """Return a network with random weights on the device."""
    with torch.device("meta"):
        network = VelocityModel(build_transformer(PRESETS[preset].transformer)).to(bench.dtype)
    network = network.to_empty(device=bench.device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    return network


def inputs_of(bench: Bench, preset: str) -> tuple[Tensor, Tensor, Conditions]:
    """Return noise, its level and conditions of the longest text."""
    shapes = PRESETS[preset].transformer
    x_sigma = bench.randn(1, shapes.latent_channels, *bench.latents)
    conditions = Conditions(
        text=bench.randn(1, shapes.num_text_tokens, shapes.text_embed_dim),
        text_mask=torch.ones(1, shapes.num_text_tokens, dtype=torch.bool, device=bench.device),
        pooled=bench.randn(1, shapes.pooled_projection_dim),
        image_prior=x_sigma[:, :, :1],
    )
    return x_sigma, torch.full((1,), 0.5, device=bench.device), conditions
