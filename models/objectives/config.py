"""Configurations of the training methods."""

from typing import Annotated, Literal

from pydantic import Field

from magicdistill.models.config import Config
from magicdistill.models.networks.config import LoraConfig


class ScoreSigmaConfig(Config):
    """The law of the noise level at which scores are compared. Standard."""

    shift: float = Field(default=5.0, gt=0)
    low: float = Field(default=0.02, ge=0, le=1)
    high: float = Field(default=0.98, ge=0, le=1)


class SamplerConfig(Config):
    """The few-step sampler of rollouts, validation and inference."""

    name: Literal["euler", "consistency"] = "euler"
    num_steps: int = Field(default=4, ge=1)
    shift: float = Field(default=5.0, gt=0)


class VaeMethod(Config):
    """Train the decoder of the VAE; the encoder is a closed-form patch code."""

    name: Literal["vae"]
    latent_noise: float = Field(default=0.03, ge=0)
    """Standard deviation of the noise on the decoder's input, in units of the latents'."""
    edge_weight: float = Field(default=0.3, ge=0)
    """Weight of the L1 distance of spatial and temporal differences."""


class FinetuneMethod(Config):
    """Flow matching on data: teacher pre-training and fine-tuning. Known: 003 section 3."""

    name: Literal["finetune"]
    shift: float = Field(default=1.0, gt=0)
    uniform_share: float = Field(default=0.15, ge=0, le=1)
    """Share of samples with uniform instead of logit-normal sigma."""


class MagicMethod(Config):
    """Weak-to-strong distribution matching with an adversarial term. Known: 002 section 3."""

    name: Literal["magic"]
    lora: LoraConfig = LoraConfig()
    sampler: SamplerConfig = SamplerConfig()
    score_sigma: ScoreSigmaConfig = ScoreSigmaConfig()
    alpha_weak: float = Field(default=0.25, ge=0, le=1)
    """LoRA strength of the real score; 0 is plain distribution matching."""
    alpha_strong: float = Field(default=1.0, gt=0)
    """LoRA strength of the fake score."""
    num_fake_updates: int = Field(default=5, ge=1)
    """Critic updates for each generator update."""
    warmup_cycles: int = Field(default=0, ge=0)
    """Cycles at the start in which the generator rests."""
    share_rollout: bool = True
    """One rollout serves a whole cycle; otherwise each turn makes its own."""
    dmd_weight: float = Field(default=1.0, ge=0)
    adversarial_weight: float = Field(default=0.05, ge=0)
    """Weight of the generator's adversarial term; 0 builds no discriminator. Not in the paper."""
    ground_truth: Literal["mse", "dmd"] = "mse"
    """Reading of 002 Eq. 7; both are reconstructed."""
    ground_truth_weight: float = Field(default=0.0, ge=0)
    lora_loss_scale: float = Field(default=1.0, gt=0)
    """Factor on the fake-score loss; 1e4 under bf16 and ZeRO (002 section 3.4)."""


MethodConfig = Annotated[VaeMethod | FinetuneMethod | MagicMethod, Field(discriminator="name")]
