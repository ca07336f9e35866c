"""Distributions of the scores and what each limit rejects, for choosing the limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicdistill.data_pipeline.config import Bucket, Limit, Policy, nearest_bucket
from magicdistill.data_pipeline.latents.windows import num_resampled
from magicdistill.data_pipeline.ledger.policy import breach
from magicdistill.data_pipeline.rows import Array, ClipRow

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COLUMNS = ("least", "5%", "25%", "median", "75%", "95%", "most")


@dataclass(frozen=True)
class ScoreDistribution:
    """The values of one score over the clips of one mixture, beside the score's limit."""

    mixture: str
    score: str
    values: Array
    """Float64 (n,), sorted; clips without the score are left out."""
    limit: Limit
    num_rejected: int
    """Number of clips beyond this limit, whether or not they are beyond others."""
    num_rejected_alone: int
    """Number of clips that are beyond this limit and within all others of the table."""

    @property
    def quantiles(self) -> list[float]:
        """The values at `QUANTILES`."""
        return np.quantile(self.values, QUANTILES).tolist()


def calibrate(
    clips: Sequence[ClipRow], policy: Policy, *buckets: Bucket
) -> list[ScoreDistribution]:
    """Return the distribution of every score in every mixture, over the clips that did not fail."""
    distributions: list[ScoreDistribution] = []
    readable = [clip for clip in clips if not clip.failure]
    for mixture in sorted({clip.video.mixture for clip in readable}):
        limits = _structural_limits(policy, buckets) | policy.limits_of(mixture)
        numbers = [_numbers(clip, buckets) for clip in readable if clip.video.mixture == mixture]
        breached = [
            {name for name, value in row.items() if breach(value, limits.get(name, Limit()))}
            for row in numbers
        ]
        for name in dict.fromkeys(name for row in numbers for name in row):
            values = np.sort([row[name] for row in numbers if name in row])
            rejected = [names for names in breached if name in names]
            alone = sum(len(names) == 1 for names in rejected)
            limit = limits.get(name, Limit())
            distributions.append(
                ScoreDistribution(mixture, name, values, limit, len(rejected), alone)
            )
    return distributions


def spell(limit: Limit) -> str:
    """Return a limit as text such as `≥ 1 ≤ 10`; empty where there is none."""
    ends = ((limit.min, "≥"), (limit.max, "≤"))
    return " ".join(f"{sign} {end:g}" for end, sign in ends if end is not None)


def format_distributions(distributions: Sequence[ScoreDistribution]) -> str:
    """Return a table of the distributions as text, one line for each."""
    head = ["mixture", "score", "clips", *COLUMNS, "limit", "rejects", "alone"]
    rows = [
        [
            distribution.mixture,
            distribution.score,
            str(len(distribution.values)),
            *(f"{value:.4g}" for value in distribution.quantiles),
            spell(distribution.limit) or "-",
            str(distribution.num_rejected),
            str(distribution.num_rejected_alone),
        ]
        for distribution in distributions
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows))
    return "\n".join(lines)


def _numbers(clip: ClipRow, buckets: Sequence[Bucket]) -> dict[str, float]:
    """Return the clip's measured values, by the names on which limits can be set."""
    bucket = nearest_bucket(clip.width, clip.height, buckets)
    found = {
        "short side": min(clip.width, clip.height),
        "long side": max(clip.width, clip.height),
        _frames(bucket, buckets): num_resampled(clip, bucket),
        "decoded ratio": clip.num_frames_decoded / clip.num_frames_header,
        "cuts": clip.num_cuts,
        "motion.px": clip.motion_px,
        **clip.video.imported_scores,
        **clip.scores,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _structural_limits(policy: Policy, buckets: Sequence[Bucket]) -> dict[str, Limit]:
    lengths = {
        _frames(bucket, buckets): Limit(min=max(policy.min_frames or 0, bucket.num_frames))
        for bucket in buckets
    }
    return lengths | {
        "short side": Limit(min=policy.min_short_side),
        "long side": Limit(min=policy.min_long_side),
        "decoded ratio": Limit(min=policy.min_decoded_ratio),
        "cuts": Limit(max=policy.max_cuts),
    }


def _frames(bucket: Bucket, buckets: Sequence[Bucket]) -> str:
    """Return the name of the score that counts frames at a bucket's rate; buckets that ask for
    another number of frames than the first have a name of their own."""
    same = bucket.num_frames == buckets[0].num_frames
    return "frames" if same else f"frames for {bucket.num_frames}"
