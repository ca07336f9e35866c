"""Sample latents, in the same way in validation, in evaluation and in use."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from magicdistill.models.diffusion.flow import sigma_grid
from magicdistill.models.diffusion.guidance import embedded, guided
from magicdistill.models.diffusion.long_video import continued
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity, sample
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.config import SamplerConfig


def generate(
    velocity: Velocity,
    sampler: SamplerConfig,
    conditions: Conditions,
    shape: Sequence[int],
    *,
    seed: int,
    positions: Sequence[int],
    sample_index: int = 0,
    null: Conditions | None = None,
    known: Float[Tensor, "b c k h w"] | None = None,
    window: int = 0,
) -> Float[Tensor, "b c f h w"]:
    """Sample latents of `shape` (c f h w); the noise is a function of seed, position and index.

    `sample_index` counts the videos of one first frame. `null` are the conditions that guidance
    compares with if the network has no guidance input. A later context window of a long video has
    noise of its own and continues the latent frames `known`.
    """
    device = conditions.text.device
    rng = Rng(seed, -1 - sample_index, window - 1, positions, device)
    embeds = getattr(velocity, "guidance_embeds", False)
    network = embedded(velocity, sampler.guidance, embeds=embeds)
    field = guided(network, sampler.cfg(embeds=embeds), null, embeds=False)
    return sample(
        field if known is None else continued(field, known),
        sampler.start(rng.normal("noise", shape), conditions.image_prior),
        sigma_grid(sampler.num_steps, sampler.shift, device),
        conditions,
        sampler=sampler.name,
        fresh_noise=lambda step: rng.normal(f"fresh-{step}", shape),
    )
