"""The adversarial term of DMD2 (002 Eq. 4 refers to it; this is its standard form)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

Logits = Float[Tensor, "b n"]


def discriminator_loss(fake: Logits, real: Logits) -> Float[Tensor, ""]:
    """Return softplus(D(fake)) + softplus(-D(real)), mean over samples and tokens."""
    return softplus(fake).mean() + softplus(-real).mean()


def generator_loss(fake: Logits) -> Float[Tensor, ""]:
    """Return softplus(-D(fake)), mean over samples and tokens."""
    return softplus(-fake).mean()


def finite_difference_r1(real: Logits, perturbed: Logits, step: float) -> Float[Tensor, ""]:
    """Return mean(((D(x + step * noise) - D(x)) / step)^2), about E|grad D|^2 per logit.

    The R1 penalty without second derivatives, which sharded networks and fused attention lack.
    Standard; not in the papers.
    """
    return ((perturbed - real) / step).square().mean()
