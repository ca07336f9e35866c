import pytest
import torch

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.models.objectives.types import Batch
from tests.tiny import tiny_shapes

NANO = tiny_shapes(num_single_layers=2)


def nano_transformer(seed: int = 0):
    """Build a transformer whose output is not zero."""
    torch.manual_seed(seed)
    return build_transformer(NANO)


@pytest.fixture
def generator() -> VelocityModel:
    return VelocityModel(nano_transformer())


@pytest.fixture
def critic() -> Critic:
    """A critic whose LoRA is not zero."""
    critic = Critic(nano_transformer(), LoraConfig(rank=2), adversarial=True)
    torch.manual_seed(1)
    for name, parameter in critic.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return critic


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(2)
    x0 = torch.randn(2, 4, 3, 4, 4)
    conditions = Conditions.null(x0[:, :, :1], num_tokens=2, text_dim=6, pooled_dim=6)
    return Batch(x0, conditions, range(2))
