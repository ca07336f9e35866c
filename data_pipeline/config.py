"""The `data` section of a recipe: which clips to curate, how to judge and how to store them."""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from magicdistill.data_pipeline.captioning.captions import (
    CAPTION,
    CAPTION_SCORES,
    Captions,
    CaptionScorer,
)
from magicdistill.data_pipeline.scorers.base import Gpus, Scorer
from magicdistill.data_pipeline.scorers.registry import AnyScorer, score_names
from magicdistill.data_pipeline.sources.base import Mixture
from magicdistill.data_pipeline.sources.registry import Source, importers
from magicdistill.models.config import Config, demand_range
from magicdistill.models.paths import LocalPath

SCORES_VERSION = 3
"""Raised when frames, shots or motion change their meaning; all videos are then scored again."""


class Bucket(Config):
    """The shape that every window of a clip is brought to before encoding."""

    num_frames: int = Field(default=17, ge=1)
    """Frames of a window: 4k + 1, as the causal VAE encodes the first frame alone and the others in
    fours."""
    height: int = Field(default=64, multiple_of=8, ge=8)
    """Height of a window in pixels, of which the VAE makes one latent row of eight."""
    width: int = Field(default=64, multiple_of=8, ge=8)
    """Width of a window in pixels, of which the VAE makes one latent column of eight."""
    fps: float = Field(default=24.0, gt=0)
    """Frames per second of a window; a clip of another rate gives the frames nearest in time."""

    @model_validator(mode="after")
    def _has_whole_latents(self) -> "Bucket":
        if self.num_frames % 4 != 1:
            near = 4 * (self.num_frames // 4) + 1
            raise ValueError(f"num_frames {self.num_frames}: give 4k+1, such as {near}")
        return self

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}@{self.fps:g}"


def nearest_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """Return the bucket whose aspect is nearest to that of a picture of these sides in pixels.

    It is the one whose centre crop keeps most of the picture; of equals, the first.
    """
    return max(buckets, key=lambda bucket: _kept(width * bucket.height, height * bucket.width))


def _kept(*sides: int) -> float:
    """Return the share of a picture that a crop to a bucket's aspect keeps.

    `sides` are the picture's width times the bucket's height, and its height times the bucket's
    width: their ratio is that of the two aspects.
    """
    return min(sides) / max(*sides, 1)


class Measures(Config):
    """How clips are found and scored; scores taken with other settings are not comparable."""

    motion_short_side: int = Field(default=240, ge=16)
    """Short side in pixels of the frames whose motion is measured."""
    motion_fps: float = Field(default=2.0, gt=0)
    """Frames per second that are compared for motion, each with the one before. Motion is stated in
    pixels per such step; frames in between are followed where it is fast."""
    trim_frames: int = Field(default=4, ge=0)
    """Frames removed on each side of a transition when a video is split into shots."""
    shots: Literal["koala", "transnetv2", "either", "none"] = "koala"
    """Who finds cuts: Koala-36M's linear rule with tests for reframings, dissolves and fades,
    TransNetV2 (a package for its weights; twenty times slower on a CPU), both, where a cut that
    either sees is one, or nobody, for clips that are known to have none."""
    scorers: tuple[AnyScorer, ...] = ()
    """What else is measured of every clip. A new scorer, or one with other settings, weights or
    code, measures what is known already; everything else is left alone."""
    num_gpus_per_actor: Gpus = 0.0
    """GPUs that the processes of `embedding` and `aesthetics` reserve; scorers of OpenCV run on
    CPUs. Changing it takes no score again."""

    @model_validator(mode="after")
    def _check_scorers(self) -> "Measures":
        kinds = [scorer.kind for scorer in self.scorers]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"scorers are named once each, not {', '.join(twice)} twice")
        return self

    @property
    def version(self) -> str:
        """Name of this way of finding clips, a hash; scorers have versions of their own."""
        left_out = {"scorers", "num_gpus_per_actor"}
        # A field that is younger than the first ledgers is left out at its default, so that those
        # ledgers are still read.
        left_out |= {"shots"} if self.shots == "koala" else set()
        text = f"{SCORES_VERSION} {self.model_dump_json(exclude=left_out)}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Limit(Config):
    """The range in which a score passes, its ends included."""

    min: float | None = None
    """Smallest value that passes; null is no limit."""
    max: float | None = None
    """Largest value that passes; null is no limit."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Limit":
        demand_range(self.min, self.max)
        return self


_CAPTIONS = {
    "caption.words": Limit(min=5, max=300),
    "caption.repetition": Limit(max=0.2),
    "caption.latin": Limit(min=0.9),
    "caption.cut": Limit(max=0),
}
"""Limits of the captions of all mixtures, where a recipe has `captions`: of a manifest's, too."""
_EVERYWHERE = _CAPTIONS | {
    "black.longest_s": Limit(max=0.5),
    "frozen.longest_s": Limit(max=0.5),
    "letterbox.share": Limit(max=0.02),
    "exposure.luma": Limit(min=20, max=235),
    "text.area": Limit(max=0.02),
    "safety.nsfw": Limit(max=0.5),
    "koala.clarity": Limit(min=0.7),
    "video.hdr": Limit(max=0),
    "video.interlaced": Limit(max=0),
}
"""Limits of all mixtures. Durations are in seconds, shares and areas fractions of the frame, `luma`
is in grey levels of 255, `nsfw` a probability, and `clarity` from 0 to 1."""
_MOVING = {
    "motion.px": Limit(min=1.0, max=10.0),
    "aesthetics.laion": Limit(min=5.0),
    "koala.suitability": Limit(min=2.5),
}
"""Further limits of mixtures in which more has to move than a talking head."""
LIMITS: dict[Mixture, dict[str, Limit]] = {
    "portrait": _EVERYWHERE
    | {
        "motion.px": Limit(min=0.3, max=8.0),
        "aesthetics.laion": Limit(min=4.5),
        "faces.single_share": Limit(min=0.96),
        "faces.area_mean": Limit(min=0.0167),
        "faces.area_min": Limit(min=0.0133),
        "faces.yaw_proxy_deg": Limit(max=30.0),
    },
    "general": _EVERYWHERE | _MOVING,
    "anime": _EVERYWHERE | _MOVING | {"frozen.longest_s": Limit(max=1.0)},
}
"""What a policy asks for unless it says otherwise. A limit rejects no clip for a score that nobody
took."""


def _score_names() -> dict[str, tuple[str, ...]]:
    """Return the names of the numbers that scorers take, and of what is measured of captions."""
    return score_names() | {CAPTION: CAPTION_SCORES}


class Policy(Config):
    """Thresholds over stored scores; changing one decodes and encodes nothing again."""

    min_short_side: int = Field(default=540, ge=0)
    """Smallest short side of a clip in pixels."""
    min_long_side: int = Field(default=960, ge=0)
    """Smallest long side of a clip in pixels."""
    max_upscale: float = Field(default=1.0, ge=1)
    """Largest factor by which a clip may be enlarged to fill its bucket; 1 enlarges nothing."""
    min_frames: int | None = Field(default=None, ge=1)
    """Smallest number of frames at the bucket's frame rate. A clip has to fill its bucket in any
    case, and null asks for no more."""
    min_decoded_ratio: float = Field(default=0.98, ge=0, le=1)
    """Smallest share that can be decoded of the frames that the container announces."""
    max_cuts: int = Field(default=0, ge=0)
    """Largest number of cuts that a clip may have inside."""
    min_motion_px: float | None = Field(default=None, ge=0)
    """Smallest mean displacement in pixels, as `measures` takes it; null is 0.3 for portraits and 1
    for others."""
    max_motion_px: float | None = Field(default=None, gt=0)
    """Largest mean displacement in pixels; null is 8 for portraits and 10 for others."""
    limits: dict[Literal["all", Mixture], dict[str, Limit]] = Field(default_factory=dict)
    """Limits by score, such as `text.area`, for `all` mixtures or for one. A limit given here
    replaces the usual one whole, so a bound that is left out is lifted; `{}` in a recipe file lifts
    both."""
    crop_bars: bool = False
    """Cut bars off and judge the size of what is left, instead of rejecting the clip."""
    max_clips_per_source: int = Field(default=8, ge=1)
    """Largest number of clips that are kept of each film, chosen by a hash of their ids."""
    max_hash_bits: float = Field(default=6.0, ge=0, le=32)
    """Clips are near duplicates where their 64-bit perceptual hashes differ in at most this number
    of bits on average, if the recipe takes `phash`."""
    min_cosine: float = Field(default=0.98, gt=0, le=1)
    """Clips are near duplicates where the cosine of their embeddings is at least this, if the
    recipe takes `embedding`, which goes before hashes."""

    def limits_of(self, mixture: str) -> dict[str, Limit]:
        """Return the limits of a mixture's clips by score: the usual ones, then the policy's own.

        Limits for one mixture go before those for `all`.
        """
        motion = LIMITS[mixture]["motion.px"].model_copy(  # type: ignore[index]
            update={
                bound: value
                for bound, value in (("min", self.min_motion_px), ("max", self.max_motion_px))
                if value is not None
            }
        )
        chosen = self.limits.get("all", {}) | self.limits.get(mixture, {})  # type: ignore[call-overload]
        return LIMITS[mixture] | {"motion.px": motion} | chosen  # type: ignore[index]

    @property
    def version(self) -> str:
        """Name of this policy: a hash of all its thresholds, those with their defaults included."""
        # What is younger than the first policies, limits of captions and `max_upscale`, is left out
        # at its default, so that those keep their names.
        limits = {
            mixture: {
                name: limit.model_dump()
                for name, limit in self.limits_of(mixture).items()
                if _CAPTIONS.get(name) != limit
            }
            for mixture in LIMITS
        }
        left_out = {"limits"} | ({"max_upscale"} if self.max_upscale == 1 else set())
        text = f"{self.model_dump_json(exclude=left_out)} {json.dumps(limits, sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @model_validator(mode="after")
    def _motion_is_a_range(self) -> "Policy":
        for mixture in LIMITS:
            least, most = (getattr(self.limits_of(mixture)["motion.px"], b) for b in ("min", "max"))
            if None not in (least, most) and least > most:
                raise ValueError(
                    f"min_motion_px {least:g} is above max_motion_px {most:g} for {mixture} clips: "
                    "give both, the smaller one first"
                )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> "Policy":
        for name in {name for limits in self.limits.values() for name in limits}:
            kind, _, score = name.partition(".")
            known = _score_names().get(kind)
            if not score or (known is not None and score not in known):
                choice = ", ".join(f"{kind}.{score}" for score in known or ()) or "<source>.<score>"
                raise ValueError(f"limits name scores: {name!r} is none of {choice}")
        return self


class Decoder(Config):
    """Limits of the child process that opens untrusted files."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that may pass without a frame before the decoder's process is killed; a long film
    takes the time that it needs."""
    num_attempts: int = Field(default=2, ge=1)
    """A file that crashes or hangs the decoder this many times is given up and recorded."""


class Encoding(Config):
    """How windows become cached latents."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers in which the VAE computes."""
    stored_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numbers in which latents are stored."""
    batch_size: int = Field(default=4, ge=1)
    """Windows per forward of the VAE. On CPUs 2 to 4 are fastest; 1 is several times slower."""
    rows_per_shard: int = Field(default=64, ge=1)
    """Latents in one file of the cache."""
    num_gpus_per_actor: Gpus = 0.0
    """GPUs that each encoding process reserves; 0 encodes on CPUs."""

    @property
    def dtypes(self) -> str:
        """The part of a cached row's key that names the formats of numbers.

        Latents that were computed or stored otherwise are other rows.
        """
        computed = "" if self.compute_dtype == "float32" else f" by {self.compute_dtype}"
        return f"{self.stored_dtype}{computed}"


class NullText(Config):
    """Shape of the null prompt's zero embedding."""

    num_tokens: int = Field(default=4, ge=1)
    """Tokens of the embedding."""
    token_dim: int = Field(default=64, ge=1)
    """Width of each token."""
    pooled_dim: int = Field(default=64, ge=0)
    """Width of the pooled embedding; 0 for a network that takes none."""


class Prompts(Config):
    """How captions are embedded, and how often training takes the null prompt instead of one."""

    encoder: LocalPath
    """Local folder of diffusers: text_encoder, tokenizer, text_encoder_2, tokenizer_2."""
    num_tokens: int = Field(default=256, ge=1)
    """Tokens of a prompt; longer ones are cut."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """Share of the training samples that get the null prompt."""
    image_token_stride: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda stride: stride is None,  # recipes without it keep their digests
    )
    """Multi-modal guidance (003 section 3): the encoder, the LLaVA of HunyuanVideo-I2V, sees each
    window's first frame too, and one of so many of its image tokens stands before the text. As
    published, it is one of 2 where the first frame enters the network by channels, and one of 4
    where it replaces a latent frame. Null encodes the text alone."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Numbers in which the text encoders compute."""
    stored_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numbers in which embeddings are stored."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts per forward of the encoders."""
    prompts_per_shard: int = Field(default=256, ge=1)
    """Prompts in one file of the cache."""
    num_gpus_per_actor: Gpus = 0.0
    """GPUs that each encoding process reserves; 0 encodes on CPUs."""


class DataConfig(Config):
    """Everything that `curate` needs to turn sources into a latent cache."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where clips come from, one entry for each collection."""
    bucket: Bucket = Bucket()
    """Shape of the windows that are encoded."""
    other_buckets: tuple[Bucket, ...] = ()
    """More shapes, such as portrait beside landscape: a clip goes to the one of the nearest aspect
    and is judged against that. All samples of an update have one shape."""
    windows_per_clip: int = Field(default=3, ge=1)
    """Evenly spaced windows taken from each clip; fewer where they would coincide."""
    flip: bool = True
    """Add a mirrored row for every window."""
    measures: Measures = Measures()
    """How clips are found and scored."""
    policy: Policy = Policy()
    """Which clips are kept, by limits on stored scores."""
    decoder: Decoder = Decoder()
    """Limits of the process that opens untrusted files."""
    encoding: Encoding = Encoding()
    """How windows become cached latents."""
    null_text: NullText = NullText()
    """Shape of the null prompt's zero embedding."""
    captions: Captions | None = None
    """Who writes the captions that clips lack; null takes them from the sources alone."""
    prompts: Prompts | None = None
    """How captions are embedded; null trains every clip on the zero embedding of `null_text`."""
    mixture_weights: dict[Mixture, PositiveFloat] = Field(default_factory=dict)
    """How often training draws clips of each kind, such as portrait 6, general 3, anime 1; a kind
    that is not named is never drawn. Empty draws from all rows alike."""
    num_actors: int = Field(default=2, ge=1)
    """Scoring and encoding processes, one logical CPU each."""
    num_readers: int = Field(default=0, ge=0)
    """Processes of Ray Data that read training samples ahead of need, one logical CPU each; with 0
    each worker reads its own when it needs them."""
    videos_per_block: int = Field(default=16, ge=1)
    """Videos that one scoring call receives; a block is committed to the ledger as one part."""

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """All shapes, the main one first."""
        return (self.bucket, *self.other_buckets)

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """Who takes scores: the scorers of `measures`, and who writes captions."""
        written = () if self.captions is None else (CaptionScorer(captions=self.captions),)
        return (*self.measures.scorers, *written)

    def bucket_of(self, width: int, height: int) -> Bucket:
        """Return the shape that clips of a size are brought to."""
        return nearest_bucket(width, height, self.buckets)

    @model_validator(mode="after")
    def _check_buckets(self) -> "DataConfig":
        for other in self.other_buckets:
            if other.fps != self.bucket.fps:
                raise ValueError(
                    f"other_buckets: {other} has another frame rate than the bucket {self.bucket}"
                )
            if (first := self.bucket_of(other.width, other.height)) is not other:
                raise ValueError(
                    f"other_buckets: {other} gets no clips, as {first} has the same aspect; "
                    "leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> "DataConfig":
        if any(source.SCORES is None for source in self.sources):
            return self  # each of its lines names a data set, after which its scores are called
        known = {*_score_names(), *importers()}
        for name in {name for limits in self.policy.limits.values() for name in limits}:
            if name.partition(".")[0] not in known:
                choice = ", ".join(sorted(known))
                raise ValueError(f"limits name scores: {name!r} is of none of {choice}")
        return self

    @model_validator(mode="after")
    def _check_places(self) -> "DataConfig":
        places: dict[str, str] = {}
        for label, location in filter(None, (source.named_place() for source in self.sources)):
            place = places.setdefault(label, location)
            if place != location:
                raise ValueError(
                    f"the folders {place} and {location} are both called {label!r} "
                    "in source ids, which caps and takedowns go by: give one of them a `name`"
                )
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> "DataConfig":
        for clips in filter(None, (source.uniform_clips() for source in self.sources)):
            bucket = self.bucket_of(clips.width, clips.height)
            seconds = bucket.num_frames / bucket.fps
            if seconds > clips.seconds:
                raise ValueError(
                    f"{clips.whose} clips last {clips.seconds:g} s and the bucket {bucket} asks "
                    f"for {seconds:.2f} s: {clips.fix}"
                )
        return self
