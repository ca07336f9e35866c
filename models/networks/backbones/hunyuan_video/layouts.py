"""HunyuanVideo's published layouts of the input: how the first frame enters, without PyTorch."""

from collections.abc import Mapping
from typing import Any, Final

TEXT_TO_VIDEO: Final = "text_to_video"
SKYREELS: Final = "skyreels"
CONCAT: Final = "latent_concat"
LAYOUTS = {
    TEXT_TO_VIDEO: (1, 0),
    "token_replace": (1, 0),
    SKYREELS: (2, 0),
    CONCAT: (2, 1),
}
"""Published layouts of the input and their channels a C + b, for C channels of the latents.

HunyuanVideo is text-to-video; HunyuanVideo-I2V replaces the first latent frame (16 channels, the
public code's default) or gets the image's latents and their mask beside the noise (33 channels);
SkyReels-V1 gets the latents without a mask (32 channels). Known: diffusers' pipelines of these
names and its conversion of the published files.
"""


def input_layout(in_channels: int, latent_channels: int, said: str | None) -> str:
    """Return the layout of a network's input, from its channels and from what was said of it.

    `said` is a name of `LAYOUTS`; it is needed where the channels leave two layouts.

    Raises:
        ValueError: no layout has so many channels, or another one than was said, or two have.
    """
    counts = {name: a * latent_channels + b for name, (a, b) in LAYOUTS.items()}
    fitting = [name for name, count in counts.items() if count == in_channels]
    if not fitting:
        known = ", ".join(f"{count} ({name})" for name, count in counts.items())
        raise ValueError(f"{in_channels} input channels are of no layout of HunyuanVideo: {known}")
    if said is None and len(fitting) > 1:
        raise ValueError(
            f"{in_channels} input channels are those of {' and of '.join(fitting)}, and the file "
            f"does not tell which: say model.teacher_layout {' or '.join(fitting)}"
        )
    if said is not None and said not in fitting:
        raise ValueError(
            f"{in_channels} input channels are those of {' or '.join(fitting)}, not of {said}: "
            f"say model.teacher_layout {fitting[0]}"
        )
    return said or fitting[0]


def condition_type(layout: str) -> str | None:
    """Return a layout's `image_condition_type` in diffusers."""
    return layout if layout in ("latent_concat", "token_replace") else None


def image_layout(config: Mapping[str, Any]) -> str | None:
    """Return the layout of a diffusers configuration; None for text-to-video.

    Raises ValueError as `input_layout` does.
    """
    name = input_layout(config["in_channels"], config["out_channels"], _said(config))
    return None if name == TEXT_TO_VIDEO else name


def _said(config: Mapping[str, Any]) -> str | None:
    """Return the layout that a diffusers configuration states, if it does."""
    if (kind := config.get("image_condition_type")) is not None:
        return kind
    return TEXT_TO_VIDEO if config["in_channels"] == config["out_channels"] else None
