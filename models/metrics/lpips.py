"""Learned perceptual image patch similarity (Zhang et al. 2018), version 0.1 on AlexNet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
WIDTHS = (64, 192, 384, 256, 256)
NEVER_ZERO = 1e-10


class Lpips(nn.Module):
    """Distance of images: weighted squares between unit feature vectors, over five layers."""

    def __init__(self) -> None:
        super().__init__()
        first, *widths = WIDTHS
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(first, widths[0], 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(widths[0], widths[1], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(widths[1], widths[2], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(widths[2], widths[3], 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    @classmethod
    def load(cls, files: Sequence[Path]) -> "Lpips":
        """Read torchvision's AlexNet and the published heads."""
        backbone, heads = (torch.load(f, map_location="cpu", weights_only=True) for f in files)
        lpips = cls()
        lpips.features.load_state_dict(_part(backbone, "features."))
        for index, head in enumerate(lpips.heads):
            head.load_state_dict(_part(heads, f"lin{index}.model.1."))
        return lpips.eval().requires_grad_(False)

    def forward(
        self, a: Float[Tensor, "b 3 y x"], b: Float[Tensor, "b 3 y x"]
    ) -> Float[Tensor, " b"]:
        """Return distances of images in [-1, 1]."""
        pairs = zip(self.heads, self._layers(a), self._layers(b), strict=True)
        terms = [head((_unit(x) - _unit(y)).square()).mean((1, 2, 3)) for head, x, y in pairs]
        return torch.stack(terms).sum(0)

    def _layers(self, images: Float[Tensor, "b 3 y x"]) -> list[Tensor]:
        hidden = (images - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for layer in self.features:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                found.append(hidden)
        return found


def _unit(features: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
    return features / (features.norm(dim=1, keepdim=True) + NEVER_ZERO)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
