"""Training of the tiny VAE's decoder.

The encoder is set in closed form (`networks.autoencoder.patch_code`). The decoder learns to
invert it, and also sees the latents around a patch. Our own method for small machines.
"""

from pathlib import Path

import torch

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.metrics.fidelity import psnr_db
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.placement import Placement
from magicdistill.models.objectives.types import Batch, Loss, Method, Networks


class VaeTraining(Method):
    """Train the role `decoder` on clips of pixels."""

    def __init__(self, vae: VideoVae, *, latent_noise: float, edge_weight: float) -> None:
        super().__init__({"decoder": vae.decoder})
        self.vae, self.latent_noise, self.edge_weight = vae, latent_noise, edge_weight

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Return the L1 distance of pixels and of their first differences, which keeps edges."""
        with torch.no_grad():
            latents = self.vae.encode(batch.x0)
        noise = self.latent_noise * rng.normal("latent", latents.shape[1:])
        decoded = networks["decoder"](self.vae.denormalise(latents + noise))
        error = decoded - batch.x0
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
        distance = error.abs().mean()
        pairs = zip(decoded.detach(), batch.x0, strict=True)
        psnr = torch.stack([psnr_db(found, wanted) for found, wanted in pairs]).mean()
        return Loss(
            distance + self.edge_weight * edges,
            {"l1": distance.detach(), "psnr_db": psnr},
        )

    def save(self, directory: Path, placement: Placement) -> None:
        """Write the whole VAE; see `Method.save`."""
        with placement.gathered(list(self.vae.parameters())) as writes:
            if writes:
                self.vae.save(directory)
