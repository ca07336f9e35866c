"""What sampling costs: steps, guidance, decoding, compilation, and diffusers' own pipeline.

`python benchmarks/sampling.py` times a window of the shipped 4-step student, or of --model, in all
ways in one process and in turn, and prints seconds of CPU and of wall time, and their ratios. The
network's time is apart from the VAE's. A step of the tiny network is mostly dispatch of small
operations, which two samples of a batch share; at BATCH at once its computation counts.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoImageToVideoPipeline
from PIL import Image
from timing import Seconds, interleaved, timed, write_result
from torch import Tensor

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.export.diffusers_pipeline import (
    ENCODERS,
    stock_autoencoder,
    stock_scheduler,
)
from magicdistill.platform.export.pretrained_model import Pretrained, find_pretrained
from magicdistill.platform.inference.generate import generate

GUIDANCE = 6.0
"""Its value does not change the time."""
WAYS = {
    "28 steps, guided": SamplerConfig(num_steps=28, guidance=GUIDANCE),
    "28 steps": SamplerConfig(num_steps=28),
    "4 steps": SamplerConfig(num_steps=4),
    "1 step": SamplerConfig(num_steps=1),
}
BATCH = 8
RATIOS = (
    ("28 steps, guided", "4 steps"),
    ("28 steps, guided", "1 step"),
    (f"28 steps, guided, {BATCH} at once", f"4 steps, {BATCH} at once"),
    (f"28 steps, guided, {BATCH} at once", f"1 step, {BATCH} at once"),
    ("diffusers' own, 28, guided", "image to latents, 4"),
    ("diffusers' own, 28, guided", "image to latents, 1"),
    ("4 steps", "4 steps, compiled"),
    ("diffusers' own, 4", "image to latents, 4"),
    ("diffusers' own, 1", "image to latents, 1"),
)


class Window:
    """One window of a model: networks, first frame and conditions."""

    def __init__(self, model: Pretrained) -> None:
        bucket = model.buckets[0]
        self.model, self.num_frames = model, bucket.num_frames
        self.height, self.width = bucket.height, bucket.width
        self.vae = VideoVae.load(model.vae)
        self.network = self.load()
        self.prior = self.encode()
        shapes = self.network.transformer.config
        self.null = Conditions.null(
            self.prior,
            num_tokens=model.num_text_tokens,
            text_dim=shapes["text_embed_dim"],
            pooled_dim=shapes["pooled_projection_dim"],
        )

    def load(self, *, compiled: bool = False) -> VelocityModel:
        """Return the network, whose blocks may be compiled when they are first called."""
        network = VelocityModel(load_transformer(self.model.transformer)).eval()
        set_kernels(network, KernelsConfig(compile_blocks=compiled))
        return network

    def encode(self) -> Tensor:
        """Return the latents of a grey first frame."""
        return self.vae.encode(torch.zeros(1, 3, 1, self.height, self.width))

    def latents(self, network: VelocityModel, sampler: SamplerConfig, batch: int = 1) -> Tensor:
        """Sample by our own sampler."""
        shape = (self.prior.shape[1], (self.num_frames - 1) // 4 + 1, *self.prior.shape[3:])
        null = Conditions.cat([self.null] * batch)
        return generate(network, sampler, null, shape, seed=0, positions=range(batch), null=null)

    def ours(self, num_steps: int) -> Tensor:
        """Go from the first frame to latents, as the stock pipeline does."""
        self.encode()
        return self.latents(self.network, SamplerConfig(num_steps=num_steps))

    def stock(self) -> Callable[[int, float], Tensor]:
        """Return diffusers' pipeline on the same weights, from the first frame to latents."""
        parts: dict[str, Any] = dict.fromkeys(ENCODERS)
        parts |= {
            "transformer": load_transformer(self.model.transformer).eval(),
            "vae": stock_autoencoder(self.vae),
            "scheduler": stock_scheduler(SamplerConfig()),
        }
        pipeline: Any = HunyuanVideoImageToVideoPipeline(**parts)
        pipeline.set_progress_bar_config(disable=True)
        picture = Image.new("RGB", (self.width, self.height), (128, 128, 128))
        null = {
            "prompt_embeds": self.null.text,
            "prompt_attention_mask": self.null.text_mask,
            "pooled_prompt_embeds": self.null.pooled,
        }
        return lambda num_steps, guidance: pipeline(
            picture,
            **null,
            **{f"negative_{name}": tensor for name, tensor in null.items()},
            true_cfg_scale=guidance,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            num_inference_steps=num_steps,
            output_type="latent",
        )


@torch.no_grad()
def measure(window: Window, repeats: int) -> dict[str, Any]:
    """Return the median seconds of each way, and those of the first compiled call."""
    compiled, stock = window.load(compiled=True), window.stock()
    latents = window.latents(window.network, WAYS["4 steps"])
    first = timed(partial(window.latents, compiled, WAYS["4 steps"]))
    calls: dict[str, Callable[[], object]] = {
        name: partial(window.latents, window.network, sampler) for name, sampler in WAYS.items()
    }
    calls |= {
        f"{name}, {BATCH} at once": partial(window.latents, window.network, sampler, BATCH)
        for name, sampler in WAYS.items()
    }
    calls |= {
        "4 steps, compiled": partial(window.latents, compiled, WAYS["4 steps"]),
        "VAE, first frame": window.encode,
        "VAE, decode": partial(window.vae.decode, latents),
    }
    for num_steps in (4, 1):
        calls[f"image to latents, {num_steps}"] = partial(window.ours, num_steps)
        calls[f"diffusers' own, {num_steps}"] = partial(stock, num_steps, 1.0)
    calls["diffusers' own, 28, guided"] = partial(stock, 28, GUIDANCE)
    return {"seconds": interleaved(calls, repeats), "compiling": first}


def format_table(found: dict[str, Seconds], compiling: Seconds) -> str:
    """Return seconds and ratios as text."""
    lines = [f"{'':44}{'CPU s':>9}{'wall s':>9}"]
    lines += [f"{name:44}{row.cpu:9.4f}{row.wall:9.4f}" for name, row in found.items()]
    lines.append(f"{'the first compiled call':44}{compiling.cpu:9.1f}{compiling.wall:9.1f}")
    lines.append(f"{'':44}{'ratio':>9}{'ratio':>9}")
    for above, below in RATIOS:
        first, second = found[above], found[below]
        ratios = (first.cpu / second.cpu, first.wall / second.wall)
        lines.append(f"{f'{above} / {below}':44}{ratios[0]:9.2f}{ratios[1]:9.2f}")
    return "\n".join(lines)


def main() -> None:
    """Time all ways, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="student-4step")
    parser.add_argument("--repeats", type=int, default=9, help="Rounds; the table has medians.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampling.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(Window(find_pretrained(args.model)), args.repeats)
    print(format_table(found["seconds"], found["compiling"]))
    seconds = {name: row._asdict() for name, row in found["seconds"].items()}
    write_result(args.out, {"seconds": seconds, "compiling": found["compiling"]._asdict()})
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
