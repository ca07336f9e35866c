"""HunyuanVideo-1.5's layouts of the input and of the features, without PyTorch."""

from collections.abc import Mapping
from typing import Any

CONCAT, TEXT_TO_VIDEO = "latent_concat", "text_to_video"
TASKS = {CONCAT: "i2v", TEXT_TO_VIDEO: "t2v"}
"""How the first frame enters, and diffusers' `task_type` of it. Both networks have the same
tensors: text-to-video gets zeros for the image's latents and their mask."""


def image_layout(config: Mapping[str, Any]) -> str | None:
    """Return the layout of a diffusers configuration; None for text-to-video.

    Raises ValueError for a network with another input: the step-distilled one, which takes a
    second noise level, and those of super-resolution.
    """
    if config["use_meanflow"]:
        raise ValueError(
            "use_meanflow: this network is distilled to few steps already and takes a second "
            "noise level; give the weights of the 480p_i2v or 720p_i2v model"
        )
    demand_channels(config["in_channels"], config["out_channels"])
    return CONCAT if config["task_type"] == TASKS[CONCAT] else None


def demand_channels(in_channels: int, latent_channels: int) -> None:
    """Raise ValueError where an input is not noisy latents, the image's and their mask."""
    if in_channels != (wanted := 2 * latent_channels + 1):
        raise ValueError(
            f"{in_channels} input channels are of no layout of HunyuanVideo-1.5 for "
            f"{latent_channels} latent channels: give weights with {wanted} (480p or 720p, not "
            "super-resolution)"
        )


def num_feature_blocks(num_layers: int) -> int:
    """Return how many blocks make the discriminator's features: a third, as in HunyuanVideo.

    There 20 of 60 blocks are double-stream ones, whose output 002 takes; here all blocks are, and
    no paper says which. Ours.
    """
    return max(1, num_layers // 3)
