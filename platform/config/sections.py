"""How a run is executed: engine, cluster and tracking."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from magicdistill.data_pipeline.config import DataConfig, Gpus
from magicdistill.models.config import Config, demand_range
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.objectives.config import SamplerConfig, TeacherSamplerConfig
from magicdistill.models.paths import LocalPath, Location, TrackingStore
from magicdistill.models.registry import Registry
from magicdistill.platform.config.validation import demand_folder_name

Decay = Annotated[float, Field(ge=0, lt=1)]
"""What one of AdamW's moments keeps at every update."""
Precision = Literal["fp32", "bf16"]
GpuName = Literal["a100", "h100", "h200", "b200"]


class DeepSpeedEngineConfig(Config):
    """DeepSpeed trains each role, with or without ZeRO sharding."""

    kind: Literal["deepspeed"] = "deepspeed"
    """Engine that trains each role."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is sharded over the ranks: 1 optimiser states, 2 gradients too, 3 parameters too."""
    precision: Precision = "fp32"
    """Numbers of the forward and the backward. Master weights, optimiser states, the sums of
    gradients over micro-batches and ranks and their exchange are float32 with either."""
    offload_optimizer: bool = False
    """Keep optimiser states in host memory."""
    offload_parameters: bool = False
    """Keep parameters in host memory; needs ZeRO stage 3."""
    whole_numel: int = Field(default=0, ge=0)
    """Under ZeRO stage 3, parameters of at most so many numbers stay whole on every rank, and are
    gathered after an update only: biases, norms, a LoRA's matrices. 0 shards them all."""

    @model_validator(mode="after")
    def _add_gradients_in_float32(self) -> Self:
        """DeepSpeed adds up bfloat16 gradients in float32 at all stages but 0."""
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage 0 would add up the gradients of precision bf16 in bf16; use zero_stage "
                "1, 2 or 3, or kind torch"
            )
        return self

    @model_validator(mode="after")
    def _offload_what_is_sharded(self) -> Self:
        if self.offload_parameters and self.zero_stage < 3:
            raise ValueError(
                f"offload_parameters needs zero_stage 3, and zero_stage is {self.zero_stage}"
            )
        return self


class TorchEngineConfig(Config):
    """Plain PyTorch trains each role: laptops and tests."""

    kind: Literal["torch"] = "torch"
    """Engine that trains each role."""
    precision: Precision = "fp32"
    """Numbers of the forward and the backward. Master weights, optimiser states and the sums of
    gradients are float32 with either."""


ENGINES: Registry[Config] = Registry("engine", Config, DeepSpeedEngineConfig, TorchEngineConfig)
EngineConfig = Annotated[DeepSpeedEngineConfig | TorchEngineConfig, ENGINES]


class PreflightConfig(Config):
    """What is measured on every worker before a training, and what becomes of slow ones."""

    action: Literal["refuse", "warn", "off"] = "warn"
    """What a run does about slow workers: `refuse` ends it and names them, `warn` names them, `off`
    measures nothing. A GPU that computes wrongly ends a run with either of the first two."""
    slow_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the median of all workers under which one is slow; null is 0.7 on GPUs, and 0.01 on
    processors, which other programs use too. An A100, H100, H200 or B200 is also slow below half
    of its data sheet."""
    matmul_size: PositiveInt | None = None
    """Rows of the square matrices that are multiplied; null is 8192 on GPUs, 128 on processors."""
    exchange_mib: PositiveInt | None = None
    """MiB that are copied, and that each worker receives from all; null is 1024 on GPUs, 1 on
    processors."""


class ClusterConfig(Config):
    """The Ray cluster and the shape of the group of training workers."""

    num_workers: PositiveInt = 2
    """Processes that train together, one GPU each where there are GPUs."""
    threads_per_worker: PositiveInt = 1
    """OMP_NUM_THREADS of every worker."""
    gpus_per_worker: Gpus = 0
    """GPUs that each worker reserves; 0 computes on processors."""
    gpu: GpuName = "h100"
    """Model of the GPUs, with whose memory and speed plans count (80 GB of an a100)."""
    rehearsal: bool = False
    """Ask Ray for the GPUs but compute on processors: tries a placement on a simulated cluster."""
    sequence_parallel: PositiveInt = 1
    """Workers that share one sample: each holds its share of the video tokens."""
    logical_cpus: PositiveInt = 8
    """CPUs that a local cluster declares: a laptop has fewer cores than Ray has things to place."""
    dashboard: bool = True
    """Whether a local cluster serves Ray's dashboard, which lengthens a one-minute run."""
    collective_timeout_s: PositiveInt = 1200
    """Seconds that workers wait for one of them before they are ended and started again: more than
    it takes to read a checkpoint or fetch it from the mirror, to compile, and to write the finished
    model."""
    preflight: PreflightConfig = PreflightConfig()
    """Measurements of all workers before a training."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts of the worker group from its last checkpoint before the run gives up."""
    address: str | None = None
    """"auto" or host:port joins a running cluster; null starts a local one, unless RAY_ADDRESS
    (which a submitted job sets) names one."""

    @property
    def uses_gpus(self) -> bool:
        """Whether the workers compute on GPUs."""
        return self.gpus_per_worker > 0 and not self.rehearsal


class TrackingConfig(Config):
    """Where MLflow keeps the runs."""

    uri: TrackingStore | None = None
    """An MLflow server or data base, such as sqlite:///mlflow.db; null is the file mlflow.db in the
    folder of the runs."""
    experiment: str = Field(default="magicdistill", min_length=1)
    """Name of the MLflow experiment that the runs belong to."""


class OptimizerConfig(Config):
    """AdamW and the learning-rate schedule of one role."""

    lr: float = Field(gt=0)
    """Learning rate after the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of AdamW's two moments; not in the papers."""
    eps: float = Field(default=1e-8, gt=0)
    """Number that AdamW adds to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates of a linear rise to `lr`."""
    decay: float | None = Field(default=None, gt=0, le=1)
    """Share of the run over which `lr` falls to `final_lr` by half a cosine; 1 ends with the run,
    however long that is, and null keeps `lr` after the warm-up."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Updates of the same fall where its length must not follow that of the run; null leaves it to
    `decay`."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the fall."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm, of a critic's LoRA and of its discriminator each by itself, without
    the factor on a loss (`method.lora_loss_scale`); null clips nothing. Not in the papers."""

    def over(self, num_updates: int) -> "OptimizerConfig":
        """Return the same with its fall in updates, for a run that has room for so many."""
        if self.decay is None or self.decay_steps is not None:
            return self
        return self.model_copy(update={"decay_steps": max(1, round(self.decay * num_updates))})

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr {self.final_lr:g} is above lr {self.lr:g}: give at most lr")
        return self


class ScheduleConfig(Config):
    """How long to train, on how much, and what happens on the way."""

    num_cycles: PositiveInt
    """Length of the training in cycles: one cycle updates each role in turn (002: one update of the
    generator with those of the fake score)."""
    batch_size: PositiveInt
    """Samples of one update over all workers and micro-batches."""
    num_micro_batches: PositiveInt = 1
    """Micro-batches whose gradients are accumulated for one update."""
    critic_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the critic as a multiple of the generator's, in place of an `lr` of its own;
    null leaves it that. It is 1 in DMD2's scripts and 0.2 in Self-Forcing's."""
    optimizers: dict[str, OptimizerConfig]
    """One optimiser for each trained role of the method."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the average of the generator's weights that is sampled and exported; null takes the
    last weights. Self-Forcing has 0.99; 002 names none."""
    ema_start: int = Field(default=0, ge=0)
    """Cycles after which the average begins; until then it is the last weights. Self-Forcing begins
    after 200 updates."""
    checkpoint_every: PositiveInt = 50
    """Cycles between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept, beside the best one."""
    sample_every: PositiveInt | None = None
    """Cycles between validation pictures."""

    @field_validator("optimizers", mode="before")
    @classmethod
    def _rate_of_the_critic(cls, optimizers: Any, info: ValidationInfo) -> Any:
        """Write down the critic's rate where it is a multiple, so that a stored recipe says it."""
        multiple = info.data.get("critic_rate")
        if multiple is None or not isinstance(optimizers, dict):
            return optimizers
        given = {
            role: one.model_dump() if isinstance(one, Config) else one
            for role, one in optimizers.items()
        }
        generator, critic = given.get("generator"), given.get("critic", {})
        rate = generator.get("lr") if isinstance(generator, dict) else None
        if not isinstance(rate, int | float) or not isinstance(critic, dict):
            raise ValueError(
                f"critic_rate {multiple:g} is a multiple of optimizers.generator.lr; give that, or "
                "set critic_rate to null"
            )
        return given | {"critic": critic | {"lr": multiple * rate}}

    def has_line(self, cycle: int) -> bool:
        """Tell whether a progress line is due after a cycle: about twenty times a run."""
        return cycle % max(1, self.num_cycles // 20) == 0 or cycle == self.num_cycles


class Thresholds(Config):
    """Between what a metric may lie; null is no limit."""

    min: float | None = None
    """Smallest healthy value; null is no limit."""
    max: float | None = None
    """Largest healthy value; null is no limit."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        demand_range(self.min, self.max)
        return self

    def __contains__(self, value: float) -> bool:
        """A value that is no number lies in no limits but the open ones."""
        above = self.min is None or value >= self.min
        return above and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        parts = {"below": self.min, "above": self.max}
        return " or ".join(
            f"{word} {limit:g}" for word, limit in parts.items() if limit is not None
        )


class HealthConfig(Config):
    """When a training is ill, and what happens then. Our own limits; no paper has any.

    A loss that is no number stops every run.
    """

    action: Literal["stop", "keep-best", "off"] = "stop"
    """What an unhealthy training does: `stop` ends the run, `keep-best` reports it and goes on,
    `off` checks nothing."""
    grace_cycles: int = Field(default=10, ge=0)
    """Cycles at the start that are not checked."""
    patience: PositiveInt = 2
    """Values outside the limits in a row that make a training unhealthy."""
    best_by: str = "drift"
    """The metric, the last part of its name, by which a checkpoint is the best, which pruning
    spares: where it is least, or greatest or nearest to 1 where an evaluation's metric is best
    there. Known after a validation (`schedule.sample_every`) or by `evaluation.scored_by`."""
    score_gap: Thresholds = Thresholds()
    """Limits of mean|f - r|, how far the fake and the real score are apart."""
    real_distance: Thresholds = Thresholds(max=1)
    """Limits of mean|x - r|, how far the real score moves a sample; latents have a variance of
    about 1."""
    gap_share: Thresholds = Thresholds()
    """Limits of mean|f - r| over mean|x - r| of a sample, on average over samples: the size of
    distribution matching's gradient."""
    fake_score: Thresholds = Thresholds(max=1)
    """Limits of the unscaled loss of the fake score; a network that predicts nothing has about
    2."""
    grad_norm: Thresholds = Thresholds()
    """Limits of the gradient norm before clipping, of every role or of each part of it that is
    clipped by itself, without the factor on its loss (`method.lora_loss_scale`)."""
    dynamic_degree: Thresholds = Thresholds(min=0.3, max=3)
    """Limits of the frame differences of the validation samples over those of the teacher's."""
    saturation: Thresholds = Thresholds(min=0.4, max=2.5)
    """Limits of the colour saturation of the validation samples over that of the teacher's."""
    contrast: Thresholds = Thresholds(min=0.4, max=2.5)
    """Limits of the contrast of the validation samples over that of the teacher's."""
    temporal_variance: Thresholds = Thresholds(min=0.1, max=10)
    """Limits of the variance over time of the validation samples over that of the teacher's."""
    drift: Thresholds = Thresholds(max=0.7)
    """Limits of the distance of these four ratios from 1 together; 0.7 is a factor of two in
    each."""


class EvaluationConfig(Config):
    """What a trained generator is judged on: a protocol (jobs/recipes/protocols)."""

    name: str = "held-out"
    """Name of the protocol: the papers' rows of that name stand in its table."""
    data: DataConfig
    """Held-out clips, or pictures, which are clips of one frame, for `jobs/evaluate.py` only."""
    num_clips: PositiveInt = 192
    """Clips or pictures that are judged."""
    num_samples: PositiveInt = 1
    """Videos of each first frame, of different noise (`jobs/evaluate.py`)."""
    num_frames: PositiveInt | None = None
    """Frames to generate from pictures, 4k+1; null is as many as the clips have."""
    batch_size: PositiveInt = 16
    """Videos that one process makes at once, for the table at the end of a run as for
    `jobs/evaluate.py`, which keeps them as one part."""
    real: Literal["decoded", "originals"] = "decoded"
    """What `jobs/evaluate.py` compares with: the clips as the VAE decodes them, or their original
    frames."""
    columns: tuple[str, ...] = ()
    """Metrics that count, in the order of the table; `average` is over the dimensions among them.
    Empty are all that can be measured."""
    num_shown: PositiveInt = 6
    """Clips in the contact sheet and the side-by-side video."""
    num_scored: PositiveInt | None = None
    """Clips, always the same, on which every metric is measured in training: the curve on which
    collapse shows, and by which `health.best_by` may choose. Null scores none."""
    scored_by: Literal["workers", "actor"] = "workers"
    """Who measures them: `workers` do whenever pictures are made (`schedule.sample_every`), and the
    training waits; an `actor` beside the workers measures every checkpoint, and where there is no
    room for it, the workers do."""
    actor_gpus: Gpus = 0
    """GPUs that the actor of `scored_by` reserves."""
    networks: LocalPath | None = None
    """Folder of the metrics' networks (docs/evaluation.md), without which only temporal flickering
    and the proxies are measured."""
    fvd_frames: Annotated[int, Field(ge=10)] | None = None
    """Frames, at least 10, of the windows that FVD and KVD see, cut one after another from a clip;
    null is each clip as a whole. 16 is the length of StyleGAN-V's FVD16."""
    teacher: TeacherSamplerConfig = TeacherSamplerConfig()
    """The many-step sampler of the teacher; by default the one that its weights were published
    with."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return demand_folder_name(name)

    @property
    def counted(self) -> tuple[str, ...]:
        """The metrics that count; no other metric's network is loaded."""
        return self.columns or METRICS.names()

    @property
    def networks_path(self) -> Path | None:
        """Where the metrics' networks are."""
        return Path(self.networks).absolute() if self.networks else None

    @property
    def has_clips(self) -> bool:
        """Whether there are real clips to compare with, and not pictures alone."""
        return self.num_frames is None

    @model_validator(mode="after")
    def _check_buckets(self) -> "EvaluationConfig":
        if self.data.other_buckets:
            raise ValueError("data.other_buckets: held-out clips have one shape; leave it empty")
        return self

    @model_validator(mode="after")
    def _check_pictures(self) -> "EvaluationConfig":
        is_picture = self.data.bucket.num_frames == 1
        if is_picture == self.has_clips or (self.num_frames or 1) % 4 != 1:
            raise ValueError(
                f"num_frames: {self.num_frames}: give 4k+1 frames where data.bucket.num_frames is "
                "1, for pictures, and null for clips"
            )
        if self.real == "originals" and (self.data.windows_per_clip > 1 or self.data.flip):
            raise ValueError("real: originals needs data.windows_per_clip 1 and data.flip false")
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> "EvaluationConfig":
        frames = self.num_frames or self.data.bucket.num_frames
        if self.fvd_frames and self.fvd_frames > frames:
            raise ValueError(f"fvd_frames: {self.fvd_frames}: the videos have {frames}; give less")
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> "EvaluationConfig":
        known = METRICS.names()
        for name in self.columns:
            if name not in known:
                raise ValueError(f"columns: no metric {name}; there are {', '.join(known)}")
        return self


class PairsConfig(Config):
    """The frozen few-step generator whose noise-data pairs a 1-step generator is trained on."""

    generator: LocalPath
    """Folder of its weights, such as the `model` folder of a run of four steps."""
    sampler: SamplerConfig = SamplerConfig()
    """Sampler with which that generator makes the pairs."""
    num_actors: PositiveInt = 1
    """Processes that make pairs beside the training; `jobs/plan.py` says how many it takes."""
    gpus_per_actor: Gpus = 0
    """1 gives each actor a GPU of its own. Where there are none to spare, actors and workers share
    them: give both a part, such as 0.3 and cluster.gpus_per_worker 0.7."""
    buffer: PositiveInt = 8
    """Micro-batches of pairs that wait for the workers before the actors are held back."""
    stored: Location | None = None
    """A folder that `jobs/distill.py --save_pairs` wrote: its pairs are read instead of made."""
