"""What a curation came to: the decisions on its clips, the published cache, and stage times."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.calibration import Calibration
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.data_pipeline.scorers.base import ABSENT
from magicdistill.data_pipeline.selection.judged_clips import JudgedClips
from magicdistill.data_pipeline.stages.run_scorers import versions_of


@dataclass(frozen=True)
class StageTiming:
    """How many items a stage worked on and how long it took."""

    stage: str
    """Name such as `score` or `encode`."""
    count: int
    unit: str
    """What is counted, in the plural: videos, clips or prompts."""
    seconds: float
    """Wall-clock time from the first item to the last."""

    def __str__(self) -> str:
        rate = self.count / self.seconds
        return f"{self.stage}: {self.count} {self.unit} in {self.seconds:.1f} s ({rate:.3g} per s)"


@dataclass(frozen=True)
class Selection:
    """The decision on every clip that was found in a config's sources, and what has none."""

    config: DataConfig
    judged: JudgedClips
    """The clips with the decisions on them, a table that queries are asked of."""
    num_videos: int
    """Number of videos that the sources list, usable or not."""
    num_unscored: int
    """Number of videos that were not scored yet; they have no clips and no decision."""
    faults: Mapping[str, Mapping[str, int]]
    """Number of videos that the listing already knows to be unusable, by data set and reason."""

    @property
    def num_clips(self) -> int:
        """Number of decisions."""
        return sum(self._counts.values())

    @property
    def calibration(self) -> Calibration:
        """The clips' scores beside the limits."""
        judged, config = self.judged, self.config
        return Calibration(
            judged.database, judged.sql, judged.columns, config.policy, config.buckets
        )

    @property
    def decisions(self) -> Iterator[Decision]:
        """Decisions in the order of the listing, an object each: for small numbers of clips."""
        return self.judged.decisions()

    @property
    def clips(self) -> list[ClipRow]:
        """The accepted clips, in the order of the cache's rows, all in memory."""
        return [decision.clip for decision in self.judged.decisions("status = 'accepted'")]

    @property
    def rejected(self) -> Iterator[Decision]:
        """Decisions on the clips that the policy rejects, as `decisions`."""
        return self.judged.decisions("status = 'rejected'")

    @property
    def failed(self) -> Iterator[Decision]:
        """Decisions on files and clips that could not be read, scored or encoded."""
        return self.judged.decisions("status = 'failed'")

    @cached_property
    def _counts(self) -> dict[str, int]:
        found = self.judged.count_by("status")
        return {status: found.get(status, 0) for status in ("accepted", "rejected", "failed")}

    @property
    def counts(self) -> dict[str, int]:
        """Number of clips for each status: accepted, rejected and failed."""
        return dict(self._counts)

    @cached_property
    def mixture(self) -> dict[str, int]:
        """Number of accepted clips in each mixture, the largest first."""
        return self.judged.count_by("mixture", "status = 'accepted'")

    @cached_property
    def buckets(self) -> dict[str, int]:
        """Number of accepted clips in each bucket, the largest first."""
        return self.judged.count_by("bucket", "status = 'accepted'")

    @property
    def absent(self) -> dict[str, int]:
        """Number of clips without a score because its scorer is absent, by the reason for that."""
        versions = versions_of(self.config.measures.scorers).values()
        count = self.judged.count("status <> 'failed'")
        return {version: count for version in versions if count and version.startswith(ABSENT)}


@dataclass(frozen=True)
class CurationResult(Selection):
    """A published version of the latent cache, and the decision on every clip considered for it."""

    cache_path: AnyPath
    """Folder of the published version, which `LatentCache` opens."""
    num_rows: int
    """Number of rows in that version: one for each window, and one for each mirror image."""

    @property
    def version(self) -> str:
        """The name of the cache's version."""
        return self.cache_path.name

    @property
    def counts(self) -> dict[str, int]:
        """Number of clips for each status, and the number of rows as `rows`."""
        return super().counts | {"rows": self.num_rows}
