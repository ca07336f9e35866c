"""What a curation came to: the decisions on its clips, the published cache, and stage times."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.rows import ClipRow


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
    decisions: tuple[Decision, ...]
    num_videos: int
    """Number of videos that the sources list, usable or not."""
    num_unscored: int
    """Number of videos that were not scored yet; they have no clips and no decision."""
    faults: Mapping[str, Mapping[str, int]]
    """Number of videos that the listing already knows to be unusable, by data set and reason."""

    @property
    def clips(self) -> list[ClipRow]:
        """The accepted clips, in the order of the cache's rows."""
        return accepted(self.decisions)

    @property
    def rejected(self) -> list[Decision]:
        """Decisions on the clips that the policy rejects."""
        return [d for d in self.decisions if d.status == "rejected"]

    @property
    def failed(self) -> list[Decision]:
        """Decisions on files and clips that could not be read, scored or encoded."""
        return [d for d in self.decisions if d.status == "failed"]

    @property
    def counts(self) -> dict[str, int]:
        """Number of clips for each status: accepted, rejected and failed."""
        found = Counter(decision.status for decision in self.decisions)
        return {status: found[status] for status in ("accepted", "rejected", "failed")}

    @property
    def mixture(self) -> dict[str, int]:
        """Number of accepted clips in each mixture, the largest first."""
        return dict(Counter(clip.video.mixture for clip in self.clips).most_common())

    @property
    def buckets(self) -> dict[str, int]:
        """Number of accepted clips in each bucket, the largest first."""
        shapes = (str(self.config.bucket_of(clip.width, clip.height)) for clip in self.clips)
        return dict(Counter(shapes).most_common())


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


def accepted(decisions: Sequence[Decision]) -> list[ClipRow]:
    """Return the clips of the decisions whose status is `accepted`, in order."""
    return [decision.clip for decision in decisions if decision.status == "accepted"]
