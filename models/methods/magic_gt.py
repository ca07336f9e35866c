"""Weak-to-strong distribution matching with ground truth."""

from typing import Literal

from magicdistill.models.methods.dmd import DistributionMatchingMethod
from magicdistill.models.methods.magic import MagicMethod
from magicdistill.models.objectives.config import (
    AdversarialPart,
    GroundTruthPart,
    WeakToStrongPart,
)


class MagicGtMethod(GroundTruthPart, WeakToStrongPart, AdversarialPart, DistributionMatchingMethod):
    """Weak-to-strong distribution matching as in `magic`, with ground-truth supervision.

    It also pulls the generator's sample towards the real clip of the same first frame. Known in
    words: 002 section 3.3.
    """

    notable = (*MagicMethod.notable, "ground_truth_weight")

    name: Literal["magic-gt"]
