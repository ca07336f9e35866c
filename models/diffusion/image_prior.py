"""The image prior of text-to-video: a first frame from a text (003 section 3).

Text-to-video is factorised into text-to-image and image-to-video. The paper's image is
G(x_T, y, R(y); theta): noise, the text, and pictures R(y) that were retrieved for it, which enter
every step of the denoising, x_{t-1} = x_t - alpha_t eps_theta(x_t, t, y, R(y)) + sigma_t z. How
R(y) enters the network is not in the paper; here it does by an IP-Adapter, which attends to all of
them, or, where there is none, by starting from the noised nearest one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, DiffusionPipeline
from jaxtyping import UInt8

MULTIPLE_PX = 16
"""Sides of a picture that every pipeline takes are multiples of this."""


class TextToImage:
    """A text-to-image pipeline of diffusers."""

    def __init__(self, pipeline: DiffusionPipeline, *, has_adapter: bool = False) -> None:
        self.pipeline: Any = pipeline
        self.has_adapter = has_adapter
        self.pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls, location: str, dtype: torch.dtype, device: str, ip_adapter: Path | None = None
    ) -> "TextToImage":
        """Load a folder, or a name on the hub of diffusers.

        `ip_adapter` is a file of weights with the folder `image_encoder` beside it. Raises OSError
        or ValueError if something is missing or does not fit.
        """
        pipeline: Any = AutoPipelineForText2Image.from_pretrained(location, dtype=dtype)
        if ip_adapter is not None:
            if not hasattr(pipeline, "load_ip_adapter"):
                raise ValueError(f"{type(pipeline).__name__} takes no IP-Adapter")
            pipeline.load_ip_adapter(
                str(ip_adapter.parent), subfolder="", weight_name=ip_adapter.name
            )
        return cls(pipeline.to(device), has_adapter=ip_adapter is not None)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a picture: the video's aspect, the pipeline's native area."""
        native = _native_px(self.pipeline)
        scale = 1.0 if native is None else native / (height * width) ** 0.5
        sides = (max(1, round(side * scale / MULTIPLE_PX)) for side in (height, width))
        tall, wide = (side * MULTIPLE_PX for side in sides)
        return tall, wide

    def __call__(
        self,
        prompt: str,
        size: tuple[int, int],
        *,
        seed: int,
        references: Sequence[UInt8[np.ndarray, "y x 3"]] = (),
        num_steps: int | None = None,
        guidance: float | None = None,
        strength: float | None = None,
    ) -> UInt8[np.ndarray, "y x 3"]:
        """Return a picture of `size` (height, width); None takes the pipeline's own default.

        References have the same size, the nearest first. Without an IP-Adapter, denoising starts
        from the first one, noised by `strength` (0: not at all, 1: pure noise). Raises ValueError
        if the pipeline takes no pictures, or if its safety checker withholds the result.
        """
        options: dict[str, Any] = {"height": size[0], "width": size[1]}
        pipeline = self.pipeline
        if references and self.has_adapter:
            options["ip_adapter_image"] = [list(references)]
        elif references:
            pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
            pipeline.set_progress_bar_config(disable=True)
            options = {"image": references[0][None].astype(np.float32) / 255, "strength": strength}
        options |= {"num_inference_steps": num_steps, "guidance_scale": guidance}
        output = pipeline(
            prompt,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **{name: value for name, value in options.items() if value is not None},
        )
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise ValueError("its safety checker keeps the picture: try another --seed")
        return (output.images[0] * 255).round().astype(np.uint8)


def _native_px(pipeline: Any) -> int | None:
    """Return the side in pixels of the square that a pipeline was trained for; None if unknown."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    sample = getattr(pipeline, "default_sample_size", None)
    sample = sample or getattr(getattr(network, "config", None), "sample_size", None)
    scale = getattr(pipeline, "vae_scale_factor", None)
    return sample * scale if isinstance(sample, int) and scale else None
