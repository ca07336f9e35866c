"""Training of the tiny VAE's decoder.

The encoder is set in closed form (`networks.patch_code`); the decoder learns to invert it and
may use everything that a patch's neighbourhood tells. Our own recipe for small machines.
"""

import torch

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.metrics.fidelity import psnr_db
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.objectives.config import VaeMethod
from magicdistill.models.objectives.types import Batch, Loss, Networks, OneRole


class VaeTraining(OneRole):
    """Train the role `decoder` on clips of pixels."""

    def __init__(self, config: VaeMethod, vae: VideoVae) -> None:
        super().__init__("decoder", vae.decoder)
        self.config, self.vae = config, vae

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Return the L1 distance of pixels and of their first differences, which keeps edges."""
        with torch.no_grad():
            latents = self.vae.encode(batch.x0)
        noise = self.config.latent_noise * rng.normal("latent", latents.shape[1:])
        decoded = networks["decoder"](self.vae.denormalise(latents + noise))
        error = decoded - batch.x0
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
        distance = error.abs().mean()
        psnr = psnr_db(decoded.detach(), batch.x0)
        return Loss(
            distance + self.config.edge_weight * edges,
            {"l1": distance.detach(), "psnr_db": psnr},
        )
