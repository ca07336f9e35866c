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
    """`magic` with ground-truth supervision. Known in words: 002 section 3.3."""

    notable = (*MagicMethod.notable, "ground_truth_weight")

    name: Literal["magic-gt"]
