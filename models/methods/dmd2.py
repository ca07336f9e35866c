"""Distribution matching with a discriminator."""

from typing import Literal

from magicdistill.models.methods.dmd import DistributionMatchingMethod
from magicdistill.models.objectives.config import AdversarialPart


class Dmd2Method(AdversarialPart, DistributionMatchingMethod):
    """Distribution matching with a discriminator. Known: 002 section 3.1."""

    name: Literal["dmd2"]
