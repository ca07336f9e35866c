"""Weak-to-strong distribution matching."""

from typing import Literal

from magicdistill.models.methods.dmd import DistributionMatchingMethod
from magicdistill.models.objectives.config import AdversarialPart, WeakToStrongPart


class MagicMethod(WeakToStrongPart, AdversarialPart, DistributionMatchingMethod):
    """Weak-to-strong distribution matching with a discriminator. Known: 002 section 3.2."""

    notable = ("alpha_weak", "alpha_strong", *DistributionMatchingMethod.notable)

    name: Literal["magic"]
