"""Proxies for the tiny world, where no pretrained video network fits.

They rank methods within this project and are not FVD or VBench scores.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FEATURE_SEED = 20250325
WIDTHS = (32, 64)


class ProxyVideoFeatures(nn.Module):
    """Space-time averages of a fixed random convolutional network, 96 numbers a clip.

    Random filters of 3 x 5 x 5 and 3 x 3 x 3 pixels answer to edges, textures and motion; blur,
    blotches and frozen video shift their averages and correlations.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(FEATURE_SEED)
        sizes = ((3, WIDTHS[0], (3, 5, 5)), (WIDTHS[0], WIDTHS[1], (3, 3, 3)))
        for index, (inputs, outputs, kernel) in enumerate(sizes):
            weight = torch.randn(outputs, inputs, *kernel, generator=generator)
            weight -= weight.mean(dim=(2, 3, 4), keepdim=True) * (index == 0)
            self.register_buffer(
                f"weight_{index}", weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
            )

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b 3 t y x"]) -> Float[Tensor, "b 96"]:
        """Return features of clips in [-1, 1]."""
        hidden, features = pixels, []
        for index in range(len(WIDTHS)):
            weight = self.get_buffer(f"weight_{index}")
            hidden = functional.relu(functional.conv3d(hidden, weight, stride=(1, 2, 2)))
            features.append(hidden.mean(dim=(2, 3, 4)))
        return 10 * torch.cat(features, dim=1)


def motion(pixels: Float[Tensor, "b 3 t y x"]) -> Float[Tensor, " b"]:
    """Return the mean absolute difference of neighbouring frames, in grey levels of 255."""
    return 127.5 * pixels.diff(dim=2).abs().mean(dim=(1, 2, 3, 4))


def flicker_proxy(pixels: Float[Tensor, "b 3 t y x"]) -> Float[Tensor, " b"]:
    """Return the same of the half of the pixels that changes least, in grey levels of 255.

    VBench's temporal flickering takes this difference on still videos. A talking portrait has
    none, but the stiller half of its picture hardly moves.
    """
    change = 127.5 * pixels.diff(dim=2).abs().mean(dim=(1, 2)).flatten(1)
    return change.topk(change.shape[1] // 2, dim=1, largest=False).values.mean(dim=1)
