"""Configurations of the training methods."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from magicdistill.models.config import Config
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.registry import Registry


class ScoreSigmaConfig(Config):
    """The law of the noise level at which scores are compared. Standard."""

    shift: float = Field(default=5.0, gt=0)
    """Flow shift of the uniform noise level."""
    min: float = Field(default=0.02, ge=0, le=1)
    """Smallest noise level."""
    max: float = Field(default=0.98, ge=0, le=1)
    """Largest noise level."""


class SamplerConfig(Config):
    """A sampler with its grid: of rollouts, validation and inference, or of the teacher."""

    name: Literal["euler", "consistency"] = "euler"
    """Rule of a step: `euler` follows the flow, `consistency` predicts x0 and adds noise again."""
    num_steps: int = Field(default=4, ge=1)
    """Steps from noise to video."""
    shift: float = Field(default=5.0, gt=0)
    """Flow shift of the grid; a larger one spends more steps at high noise."""
    guidance: float = Field(default=1.0, ge=0)
    """Guidance scale in the Ho form, 1 is none. A guidance-embedded network takes it as an input;
    another network is run with the prompt and without."""


class GuidanceRange(Config):
    """Guidance scales, drawn uniformly. The code knows the Ho form alone; this is its border."""

    min: float = Field(default=1.0, ge=0)
    """Smallest scale that is drawn."""
    max: float = Field(default=8.0, ge=0)
    """Largest scale that is drawn."""
    form: Literal["ho", "magic141"] = "ho"
    """Form of the scales: `ho` is u + w (c - u); `magic141` is (1 + w) c - w u, whose w is the Ho
    scale less one (003 Eq. 7). The range is not in the papers."""

    @property
    def ho(self) -> tuple[float, float]:
        """The range in the Ho form."""
        offset = 1.0 if self.form == "magic141" else 0.0
        return self.min + offset, self.max + offset

    @model_validator(mode="after")
    def _is_a_range(self) -> "GuidanceRange":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class CfgDistillation(Config):
    """Guidance as an input of the network instead of a second forward. Known: 003 Eq. 6-9."""

    weight: float = Field(default=1.0, ge=0)
    """Lambda of 003 Eq. 8; its value is not in the papers."""
    base_weight: float = Field(default=1.0, ge=0)
    """Weight of flow matching on data at scale 1 (003 Eq. 9)."""
    guidance: GuidanceRange = GuidanceRange()
    """Scales that the network learns."""
    shift: float = Field(default=1.0, gt=0)
    """Flow shift of the uniform noise level; the paper has none."""


class MethodBase(Config):
    """What all methods have."""

    name: str
    """Name of the method, which decides its other fields."""


class VaeMethod(MethodBase):
    """Train the decoder of the VAE; the encoder is a closed-form patch code."""

    name: Literal["vae"]
    latent_noise: float = Field(default=0.03, ge=0)
    """Standard deviation of the noise on the decoder's input, in units of the latents'."""
    edge_weight: float = Field(default=0.3, ge=0)
    """Weight of the L1 distance of spatial and temporal differences."""


class FinetuneMethod(MethodBase):
    """Flow matching on data: teacher pre-training and fine-tuning. Known: 003 section 3."""

    name: Literal["finetune"]
    shift: float = Field(default=1.0, gt=0)
    """Flow shift of the noise levels."""
    uniform_share: float = Field(default=0.15, ge=0, le=1)
    """Share of samples with uniform instead of logit-normal sigma."""


class CfgDistillMethod(CfgDistillation, MethodBase):
    """Guidance distillation alone: a many-step student that needs one forward a step."""

    name: Literal["cfg-distill"]


class EulerMethod(MethodBase):
    """The teacher itself with few steps: the baseline that nothing is trained for."""

    name: Literal["euler"]
    sampler: SamplerConfig = SamplerConfig()


class LcmMethod(MethodBase):
    """Latent consistency distillation, the paper's baseline. Known: 002 appendix B."""

    name: Literal["lcm"]
    sampler: SamplerConfig = SamplerConfig()
    teacher: SamplerConfig = SamplerConfig(num_steps=28)
    """The grid on which neighbours are made consistent, by Euler steps of the teacher."""
    huber_c: float = Field(default=1e-3, gt=0)
    """Width of the pseudo-Huber distance; a smaller one is nearer to L1."""

    @model_validator(mode="after")
    def _teacher_follows_the_flow(self) -> "LcmMethod":
        if self.teacher.name != "euler":
            raise ValueError(f"teacher.name {self.teacher.name}: the teacher's step is euler's")
        return self


class PairSupervision(Config):
    """Noise-data pairs of a frozen few-step generator, for the 1-step one. Known in words: 002
    section 4."""

    num_cycles: int = Field(ge=1)
    """Cycles over which the weights go from their first value to their last, in a line."""
    weight: tuple[float, float] = (1.0, 0.25)
    """First and last weight of the distance to the pair's video."""
    dmd_weight: tuple[float, float] = (0.25, 1.0)
    """First and last factor on distribution matching, beside the method's own."""
    huber_c: float = Field(default=1e-3, gt=0)
    """Width of the pseudo-Huber distance; not in the paper."""

    def weights(self, cycle: int) -> tuple[float, float]:
        """Return the weights of the pairs and of distribution matching in a cycle."""
        share = min(1.0, cycle / max(1, self.num_cycles - 1))
        (first, last), (dmd_first, dmd_last) = self.weight, self.dmd_weight
        return first + share * (last - first), dmd_first + share * (dmd_last - dmd_first)


class DistributionMatchingConfig(MethodBase):
    """What all methods of distribution matching have; the parts below make the difference."""

    name: str
    """Name of the method, which decides its other fields."""
    lora: LoraConfig = LoraConfig()
    sampler: SamplerConfig = SamplerConfig()
    score_sigma: ScoreSigmaConfig = ScoreSigmaConfig()
    num_fake_updates: int = Field(default=5, ge=1)
    """Critic updates for each generator update."""
    warmup_cycles: int = Field(default=0, ge=0)
    """Cycles at the start in which the generator rests."""
    share_rollout: bool = True
    """One rollout serves a whole cycle, its earlier x0 predictions the fake updates; otherwise
    each turn makes its own, up to its grid index, on samples of its own."""
    dmd_weight: float = Field(default=1.0, ge=0)
    """Weight of distribution matching in the generator's loss."""
    real_guidance: float | None = Field(default=None, ge=0)
    """Ho scale of the real score; null takes the generator's (sampler.guidance, or the scales
    that `cfg_distillation` draws). Not in the paper."""
    pairs: PairSupervision | None = None
    """Supervise a 1-step generator by pairs, which the recipe's `pairs` makes; null: do not."""
    cfg_distillation: CfgDistillation | None = None
    """Teach the generator the guidance scale in the same stage (003 section 3.1); null: do not."""
    lora_loss_scale: float = Field(default=1.0, gt=0)
    """Factor on the fake-score loss; 1e4 under bf16 and ZeRO (002 section 3.4)."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_parts_of_other_methods(cls, values: Any) -> Any:
        """Name the method that has a part; a part's zero weight says what the name says."""
        if not isinstance(values, dict):
            return values
        kept = dict(values)
        richer = {"dmd2": Dmd2Method, "magic": MagicMethod, "magic-gt": MagicGtMethod}
        for name, method in richer.items():
            for key in method.model_fields.keys() & kept.keys() - cls.model_fields.keys():
                if kept.pop(key) != 0:
                    raise ValueError(f"{values.get('name')} has no {key}; use method.name {name}")
        return kept

    @model_validator(mode="after")
    def _pairs_are_for_one_step(self) -> "DistributionMatchingConfig":
        if self.pairs is not None and (self.sampler.num_steps, self.share_rollout) != (1, True):
            raise ValueError("pairs: they need sampler.num_steps 1 and share_rollout true")
        return self


class AdversarialPart(Config):
    """The discriminator of DMD2. Standard form; none of its numbers is in the paper."""

    adversarial_weight: float = Field(default=0.05, ge=0)
    """Weight of the generator's adversarial term; 0 builds no discriminator."""
    r1_weight: float = Field(default=0.0, ge=0)
    """Weight of the finite-difference R1 penalty on real samples."""
    r1_step: float = Field(default=0.01, gt=0)
    """Standard deviation of its perturbation, in units of the latents'."""


class WeakToStrongPart(Config):
    """The real score moved towards the fake one. Known: 002 Eq. 6."""

    alpha_weak: float = Field(default=0.25, ge=0, le=1)
    """LoRA strength of the real score; 0 is plain distribution matching."""
    alpha_strong: float = Field(default=1.0, gt=0)
    """LoRA strength of the fake score."""


class GroundTruthPart(Config):
    """Supervision by real latents. Reconstructed: 002 Eq. 7."""

    ground_truth: Literal["mse", "huber", "dmd"] = "mse"
    """Reading of 002 Eq. 7: a distance to the data, or the data in the real score's place."""
    ground_truth_weight: float = Field(default=0.2, ge=0)
    """Weight of this supervision; not in the paper."""


class DmdMethod(DistributionMatchingConfig):
    """Distribution matching alone. Known: 003 Eq. 4 and 5."""

    name: Literal["dmd"]


class Dmd2Method(AdversarialPart, DistributionMatchingConfig):
    """Distribution matching with a discriminator. Known: 002 section 3.1."""

    name: Literal["dmd2"]


class MagicMethod(WeakToStrongPart, AdversarialPart, DistributionMatchingConfig):
    """Weak-to-strong distribution matching with a discriminator. Known: 002 section 3.2."""

    name: Literal["magic"]


class MagicGtMethod(GroundTruthPart, WeakToStrongPart, AdversarialPart, DistributionMatchingConfig):
    """The same with ground-truth supervision. Known in words: 002 section 3.3."""

    name: Literal["magic-gt"]


METHODS = Registry(
    "method",
    MethodBase,
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
MethodConfig = Annotated[MethodBase, METHODS]


def trained_sampler(method: MethodConfig) -> SamplerConfig | None:
    """Return the sampler that a method's generator is trained for; None where it takes any."""
    return getattr(method, "sampler", None)
