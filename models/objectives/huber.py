"""A distance between latents that is quadratic near zero and linear far away."""

from jaxtyping import Float
from torch import Tensor

PAPER_C = 1e-3


def pseudo_huber(
    prediction: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."], c: float = PAPER_C
) -> Float[Tensor, ""]:
    """Return mean(sqrt(d^2 + c^2) - c) with d = prediction - target.

    Known: the loss of 002's LCM baseline (appendix B names it; the form and c are FastVideo's).
    """
    return ((prediction - target).square() + c**2).sqrt().mean() - c
