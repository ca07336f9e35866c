import pytest
import torch

from magicdistill.models.networks.conditions import Conditions
from magicdistill.models.networks.config import LoraConfig, TransformerConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.models.objectives.types import Batch

NANO = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=1,
    num_single_layers=2,
    num_refiner_layers=1,
    rope_axes_dim=(4, 4, 4),
    text_embed_dim=6,
    pooled_projection_dim=6,
    num_text_tokens=2,
    latent_channels=4,
)


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
