"""Distributions of the scores and what each limit rejects, for choosing the limits."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from magicdistill.data_pipeline.config import Bucket, Limit, Policy
from magicdistill.data_pipeline.io.query import Database, text
from magicdistill.data_pipeline.ledger.columns import IMPORTED, imported_score
from magicdistill.data_pipeline.ledger.policy import beyond, frames_score, value_of

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COLUMNS = ("least", "5%", "25%", "median", "75%", "95%", "most")


@dataclass(frozen=True)
class ScoreDistribution:
    """The values of one score over the clips of one mixture, beside the score's limit."""

    mixture: str
    score: str
    count: int
    """Number of clips that have the score."""
    quantiles: list[float]
    """The values at `QUANTILES`."""
    limit: Limit
    num_rejected: int
    """Number of clips beyond this limit, whether or not they are beyond others."""
    num_rejected_alone: int
    """Number of clips that are beyond this limit and within all others of the table."""


class Calibration:
    """The scores of clips that did not fail, by the names on which limits can be set."""

    def __init__(
        self,
        database: Database,
        clips: str,
        columns: Collection[str],
        policy: Policy,
        buckets: Sequence[Bucket],
    ) -> None:
        """Take a table of `policy.judged` with its columns, and what judged it."""
        self._db, self._policy, self._buckets = database, policy, buckets
        self._clips = f"(FROM {clips} WHERE failure = '')"
        imported = sorted(imported_score(c) for c in columns if c.startswith(IMPORTED))
        own = [c.partition(".")[2] for c in columns if c.startswith("scores.")]
        self._values = _structural_values(buckets) | {
            score: value_of(score, columns) for score in (*imported, *own)
        }

    def distributions(self) -> list[ScoreDistribution]:
        """Return the distribution of every score in every mixture."""
        mixtures = self._db.rows(f"SELECT DISTINCT mixture FROM {self._clips} ORDER BY mixture")
        return [found for (mixture,) in mixtures for found in self._in_mixture(mixture)]

    def histogram(self, score: str, edges: Sequence[float]) -> dict[str, list[int]]:
        """Return by mixture how many values lie between neighbours of equally spaced edges."""
        first, step, count = edges[0], edges[1] - edges[0], len(edges) - 1
        place = f"least(greatest(floor((value - {first!r}) / {step!r}), 0), {count - 1})::INTEGER"
        values = f"(SELECT mixture, {self._values[score]} AS value FROM {self._clips})"
        found: dict[str, list[int]] = {}
        for mixture, bin_number, number in self._db.rows(
            f"SELECT mixture, {place} AS bin, count(*) FROM {values} "
            "WHERE value IS NOT NULL AND NOT isnan(value::DOUBLE) GROUP BY ALL"
        ):
            found.setdefault(mixture, [0] * count)[bin_number] = number
        return found

    def _in_mixture(self, mixture: str) -> Iterator[ScoreDistribution]:
        policy = self._policy
        limits = _structural_limits(policy, self._buckets) | policy.limits_of(mixture)
        clips = f"(FROM {self._clips} WHERE mixture = {text(mixture)})"
        beyond_one = [
            f"coalesce({beyond(f'({value})', limits.get(score, Limit()))}, false)"
            for score, value in self._values.items()
        ]
        flags = ", ".join(f"{flag} AS b{number}" for number, flag in enumerate(beyond_one))
        total = " + ".join(f"b{number}::INTEGER" for number in range(len(beyond_one)))
        counts = ", ".join(
            f"count(*) FILTER (b{n}), count(*) FILTER (b{n} AND total = 1)"
            for n in range(len(beyond_one))
        )
        flagged = f"SELECT *, {total} AS total FROM (SELECT {flags} FROM {clips})"
        (rejected,) = self._db.rows(f"SELECT {counts} FROM ({flagged})")
        for number, (score, value) in enumerate(self._values.items()):
            ((count, quantiles),) = self._db.rows(
                f"SELECT count(value), quantile_cont(value, {list(QUANTILES)}) "
                f"FROM (SELECT ({value})::DOUBLE AS value FROM {clips})"
            )
            if count:
                both = rejected[2 * number : 2 * number + 2]
                limit = limits.get(score, Limit())
                yield ScoreDistribution(mixture, score, count, quantiles, limit, *both)


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
            str(distribution.count),
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


def _structural_values(buckets: Sequence[Bucket]) -> dict[str, str]:
    """Return what a clip's size and length are judged by, as SQL."""
    of_bucket: dict[str, list[str]] = {}
    for bucket in buckets:
        of_bucket.setdefault(frames_score(bucket, buckets), []).append(text(bucket))
    lengths = {
        score: f"CASE WHEN bucket IN ({', '.join(names)}) THEN num_frames END"
        for score, names in of_bucket.items()
    }
    return {
        "short side": "least(width, height)",
        "long side": "greatest(width, height)",
        **lengths,
        "decoded ratio": "num_frames_decoded / num_frames_header",
        "cuts": "num_cuts",
        "motion.px": "motion_px",
    }


def _structural_limits(policy: Policy, buckets: Sequence[Bucket]) -> dict[str, Limit]:
    lengths = {
        frames_score(bucket, buckets): Limit(min=max(policy.min_frames or 0, bucket.num_frames))
        for bucket in buckets
    }
    return lengths | {
        "short side": Limit(min=policy.min_short_side),
        "long side": Limit(min=policy.min_long_side),
        "decoded ratio": Limit(min=policy.min_decoded_ratio),
        "cuts": Limit(max=policy.max_cuts),
    }
