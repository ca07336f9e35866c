"""The training methods by name."""

from typing import Annotated

from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.methods.cfg_distill import CfgDistillMethod
from magicdistill.models.methods.dmd import DmdMethod
from magicdistill.models.methods.dmd2 import Dmd2Method
from magicdistill.models.methods.euler import EulerMethod
from magicdistill.models.methods.finetune import FinetuneMethod
from magicdistill.models.methods.lcm import LcmMethod
from magicdistill.models.methods.magic import MagicMethod
from magicdistill.models.methods.magic_gt import MagicGtMethod
from magicdistill.models.methods.vae import VaeMethod
from magicdistill.models.registry import Registry

METHODS = Registry(
    "method",
    MethodConfig,
    VaeMethod,
    FinetuneMethod,
    CfgDistillMethod,
    EulerMethod,
    LcmMethod,
    DmdMethod,
    Dmd2Method,
    MagicMethod,
    MagicGtMethod,
    tag="name",
)
AnyMethod = Annotated[MethodConfig, METHODS]
"""The type of a recipe's field `method`."""
