"""Settings of the objectives, of which the configurations of training methods are made."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from magicdistill.models.config import Config, demand_range
from magicdistill.models.diffusion.noise_levels import reaches
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor as Latents
else:  # `--help` does without torch
    Latents = Any


class ScoreSigmaConfig(Config):
    """The distribution of the noise level at which scores are compared. Standard."""

    shift: float = Field(default=5.0, gt=0)
    """Flow shift of the uniform noise level."""
    min: float = Field(default=0.02, ge=0, le=1)
    """Smallest noise level."""
    max: float = Field(default=0.98, ge=0, le=1)
    """Largest noise level."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "ScoreSigmaConfig":
        demand_range(self.min, self.max)
        return self


class SamplerConfig(Config):
    """A sampler and its grid of noise levels."""

    name: Literal["euler", "consistency"] = "euler"
    """Rule of a step: `euler` follows the flow, `consistency` predicts x0 and adds noise again."""
    num_steps: int = Field(default=4, ge=1)
    """Steps from noise to video."""
    shift: float = Field(default=5.0, gt=0)
    """Flow shift of the grid; a larger one spends more steps at high noise."""
    guidance: float = Field(default=1.0, ge=0)
    """Guidance scale in the Ho form, 1 is none. A guidance-embedded network takes it as an input;
    another network is run with the prompt and without."""

    def cfg(self, *, embeds: bool) -> float:
        """Return the Ho scale for which the network is run with the prompt and without.

        `embeds` says whether the network takes the guidance scale as an input.
        """
        return 1.0 if embeds else self.guidance

    def start(self, noise: Latents, image_prior: Latents | None) -> Latents:
        """Return what sampling starts from: the noise (b c f h w)."""
        return noise

    def __str__(self) -> str:
        guidance = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        return f"{self.name} in {self.num_steps} steps, shift {self.shift:g}{guidance}"


class TeacherSampler(SamplerConfig):
    """The many-step sampler of a teacher, as its makers sample it."""

    num_steps: int = Field(default=28, ge=1)
    true_guidance: float = Field(default=1.0, ge=0)
    """Ho scale between prompt and null prompt of a network that also takes `guidance` as an input,
    such as SkyReels-V1; 1 is none."""
    image_start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the first frame's latents, in every frame, in the noise that sampling starts from:
    the stability of HunyuanVideo-I2V."""

    def cfg(self, *, embeds: bool) -> float:
        """Return the scale of its own where the other one is an input."""
        return self.true_guidance if embeds else self.guidance

    def start(self, noise: Latents, image_prior: Latents | None) -> Latents:
        """Return the noise with a share of the first frame's latents (b c 1 h w)."""
        if image_prior is None or not self.image_start:
            return noise
        return (1 - self.image_start) * noise + self.image_start * image_prior

    def __str__(self) -> str:
        true = f", true guidance {self.true_guidance:g}" if self.true_guidance != 1 else ""
        start = f", {self.image_start:g} of the image in the noise" if self.image_start else ""
        return f"{super().__str__()}{true}{start}"


class TeacherSamplerConfig(Config):
    """What a recipe says of its teacher's sampler."""

    name: Literal["euler", "consistency"] = "euler"
    """Rule of a step, as in a sampler of a method."""
    num_steps: int | None = Field(default=None, ge=1)
    """Steps from noise to video. Null, here and below, is what the weights were published with
    (docs/teachers.md)."""
    shift: float | None = Field(default=None, gt=0)
    """Flow shift of the grid."""
    guidance: float | None = Field(default=None, ge=0)
    """Guidance scale in the Ho form, 1 is none; an input of the network where it takes one."""
    true_guidance: float | None = Field(default=None, ge=0)
    """Ho scale between prompt and null prompt of a network that also takes `guidance` as an
    input; 1 is none."""
    image_start: float | None = Field(default=None, ge=0, lt=1)
    """Share of the first frame's latents, in every frame, in the noise that sampling starts
    from."""

    def over(self, own: TeacherSampler) -> TeacherSampler:
        """Return a teacher's own sampler with what is said here."""
        return own.model_copy(update=self.model_dump(exclude_none=True))


class NoiseInterval(Config):
    """The noise levels at which a network works that is one of several experts, such as Wan 2.2's.

    The lower end belongs to it, and the upper one only where it is 1. Known: diffusers' pipelines
    of Wan give levels from `boundary_ratio` on to the first expert.
    """

    min: float = Field(default=0.0, ge=0, lt=1)
    """Smallest noise level of the network."""
    max: float = Field(default=1.0, gt=0, le=1)
    """Noise level from which another network works; 1 is none."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "NoiseInterval":
        demand_range(self.min, self.max)
        return self

    def steps(self, sampler: SamplerConfig) -> range:
        """Return the steps of a sampler's grid that are in the interval."""
        times = [1 - step / sampler.num_steps for step in range(sampler.num_steps)]
        sigmas = [sampler.shift * u / (1 + (sampler.shift - 1) * u) for u in times]
        inside = [
            reaches(s, self.min) and (self.max == 1 or not reaches(s, self.max)) for s in sigmas
        ]
        first = inside.index(True) if any(inside) else 0
        return range(first, first + sum(inside))

    def narrowed(self, u: Any, shift: float) -> Any:
        """Map uniform draws to those whose shifted noise levels are in the interval."""
        low, high = (end / (shift - (shift - 1) * end) for end in (self.min, self.max))
        return u if (low, high) == (0, 1) else low + (high - low) * u


class GuidanceRange(Config):
    """Guidance scales that are drawn uniformly. All other code takes scales in the Ho form."""

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
        demand_range(self.min, self.max)
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


class PairSupervision(Config):
    """Supervision of a generator by the noise and the videos of a frozen one of more steps.

    Known in words for one step: 002 section 4. With more steps, in each of which the generator is
    to predict the video, it is the regression of DMD (arXiv:2311.18828, section 3.3), which holds
    a student against drift and stills; there it is ours.
    """

    num_cycles: int = Field(ge=1)
    """Number of cycles over which both weights go linearly from their first value to their last."""
    weight: tuple[NonNegativeFloat, NonNegativeFloat] = (1.0, 0.25)
    """First and last weight of the distance to the pair's video."""
    dmd_weight: tuple[NonNegativeFloat, NonNegativeFloat] = (0.25, 1.0)
    """First and last factor on the weight of distribution matching."""
    huber_c: float = Field(default=1e-3, gt=0)
    """Constant of the pseudo-Huber distance, in units of the latents. Not in the paper."""

    def weights(self, cycle: int) -> tuple[float, float]:
        """Return the weights of the pairs and of distribution matching in a cycle."""
        share = min(1.0, cycle / max(1, self.num_cycles - 1))
        (first, last), (dmd_first, dmd_last) = self.weight, self.dmd_weight
        return first + share * (last - first), dmd_first + share * (dmd_last - dmd_first)


class AdversarialPart(Config):
    """The discriminator of DMD2. Standard form; none of its numbers is in the paper."""

    adversarial_weight: float = Field(default=0.05, ge=0)
    """Weight of the generator's adversarial term; 0 builds no discriminator."""
    r1_weight: float = Field(default=0.0, ge=0)
    """Weight of the finite-difference R1 penalty on real samples."""
    r1_step: float = Field(default=0.01, gt=0)
    """Standard deviation of the penalty's perturbation, in units of the latents."""
    same_noise: bool = False
    """Real samples are noised for the discriminator as the generated ones are, with the same noise
    and noise level; otherwise each draws its own. FastGen's `gan_use_same_t_noise`, which its
    recipes for Wan, CogVideoX and Cosmos set. Not in the papers."""


class WeakToStrongPart(Config):
    """Strengths of the LoRA that move the real score towards the fake one. Known: 002 Eq. 6."""

    alpha_weak: float = Field(default=0.25, ge=0, le=1)
    """LoRA strength of the real score; 0 is plain distribution matching."""
    alpha_strong: float = Field(default=1.0, gt=0)
    """LoRA strength of the fake score."""

    @model_validator(mode="after")
    def _weak_is_not_stronger(self) -> "WeakToStrongPart":
        if self.alpha_weak > self.alpha_strong:
            raise ValueError(
                f"alpha_weak {self.alpha_weak:g} is above alpha_strong {self.alpha_strong:g}: give "
                "at most that"
            )
        return self


class GroundTruthPart(Config):
    """Supervision by real latents. Reconstructed: 002 Eq. 7."""

    ground_truth: Literal["mse", "huber", "dmd"] = "mse"
    """Reading of 002 Eq. 7: a distance to the data, or the data in the real score's place."""
    ground_truth_weight: float = Field(default=0.2, ge=0)
    """Weight of this supervision. Not in the paper."""


class FullStudent(Config):
    """All weights of the generator are trained, as in the papers."""

    kind: Literal["full"] = "full"
    """What is trained of the generator: `full` is all, `lora` a branch on the frozen teacher."""


class LoraStudent(LoraConfig):
    """The generator is a LoRA on the frozen teacher, whose weights the critic holds too.

    It needs no gradients, moments and master weights but the LoRA's own. Not in the papers.
    """

    kind: Literal["lora"] = "lora"
    """What is trained of the generator: `full` is all, `lora` a branch on the frozen teacher."""


STUDENTS: Registry[Config] = Registry("student", Config, FullStudent, LoraStudent)
AnyStudent = Annotated[FullStudent | LoraStudent, STUDENTS]


class DistributionMatchingConfig(Config):
    """What all methods of distribution matching have; the parts above make the difference."""

    lora: LoraConfig = LoraConfig()
    student: AnyStudent = FullStudent()
    """What is trained of the generator."""
    sampler: SamplerConfig = SamplerConfig()
    score_sigma: ScoreSigmaConfig = ScoreSigmaConfig()
    interval: NoiseInterval = NoiseInterval()
    """Noise levels of a network that is one of several experts: it is trained on the sampler's
    steps and on scores in there alone. Where the first steps are another's, its rollouts begin at
    data with noise."""
    num_fake_updates: int = Field(default=5, ge=1)
    """Number of critic updates for each generator update."""
    warmup_cycles: int = Field(default=0, ge=0)
    """Number of cycles at the start in which the generator is not updated."""
    share_rollout: bool = False
    """The fast choice: one rollout serves a whole cycle, its earlier x0 predictions the critic's
    updates. Otherwise each update draws noise of its own and rolls out to its grid index, as DMD2,
    CausVid and Self-Forcing do, and takes samples of its own unless there are `pairs`; on
    portrait-tiny that took 1.6 times as long and came nearer (docs/experiments.md)."""
    dmd_weight: float = Field(default=1.0, ge=0)
    """Weight of distribution matching in the generator's loss."""
    real_guidance: float | None = Field(default=None, ge=0)
    """Ho scale of the real score; null takes the generator's (sampler.guidance, or the scales
    that `cfg_distillation` draws). Not in the paper."""
    pairs: PairSupervision | None = None
    """Supervision of the generator by pairs, which the recipe's `pairs` makes, or null. Its update
    starts from the pair's noise, and so do those of the critic where they share its rollout."""
    cfg_distillation: CfgDistillation | None = None
    """Distillation of the guidance scale in the same stage (003 section 3.1), or null."""
    lora_loss_scale: float = Field(default=1.0, gt=0)
    """Factor on the fake-score loss; the paper has 1e4 under bf16 and ZeRO (002 section 3.4). It
    acts as a smaller `eps` of the critic's optimiser would, and changes no clipping."""
    fake_score_target: Literal["velocity", "x0"] = "velocity"
    """What the fake score's squared error is of: the `velocity` (003 Eq. 5, and Self-Forcing's
    `flow`), or `x0` as in CausVid and FastGen, which weighs each sample by its sigma squared and so
    high noise most."""

    @model_validator(mode="after")
    def _pairs_lead_to_their_video(self) -> "DistributionMatchingConfig":
        if self.pairs is None or self.sampler.num_steps == 1 or self.sampler.name == "euler":
            return self
        raise ValueError(
            f"pairs: sampler.name {self.sampler.name} adds noise after a step, which leads to "
            "another video than the pair's; use euler, or sampler.num_steps 1"
        )

    @property
    def shares_batch(self) -> bool:
        """Whether a cycle's updates see the same samples: those of one rollout, or of the pairs,
        which are made for the generator's update alone and cost a rollout of more steps."""
        return self.share_rollout or self.pairs is not None

    @model_validator(mode="after")
    def _an_expert_has_steps(self) -> "DistributionMatchingConfig":
        if not self.interval.steps(self.sampler):
            raise ValueError(
                f"interval: no step of the sampler is from {self.interval.min:g} to "
                f"{self.interval.max:g}; give more sampler.num_steps"
            )
        return self

    @model_validator(mode="after")
    def _guidance_is_no_lora(self) -> "DistributionMatchingConfig":
        if self.student_lora is not None and self.cfg_distillation is not None:
            raise ValueError(
                "student.kind lora and cfg_distillation: the embedding of the guidance scale is "
                "no LoRA; give student.kind full, or leave cfg_distillation out"
            )
        return self

    @property
    def student_lora(self) -> LoraConfig | None:
        """The generator's LoRA, where it is one."""
        return self.student if isinstance(self.student, LoraConfig) else None

    @property
    def adversarial(self) -> AdversarialPart:
        """The discriminator's settings, with weight 0 for a method that has none."""
        has_part = isinstance(self, AdversarialPart)
        return self if has_part else AdversarialPart(adversarial_weight=0)

    @property
    def strengths(self) -> WeakToStrongPart:
        """The LoRA's strengths, with a weak one of 0 for a method that has none."""
        return self if isinstance(self, WeakToStrongPart) else WeakToStrongPart(alpha_weak=0)

    @property
    def truth(self) -> GroundTruthPart:
        """The supervision by real latents, with weight 0 for a method that has none."""
        has_part = isinstance(self, GroundTruthPart)
        return self if has_part else GroundTruthPart(ground_truth_weight=0)
