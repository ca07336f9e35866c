"""What a curation found out: the clips of its config, what became of them, and how fast it went."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.policy import Decision, decide
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.stages.run_scorers import versions_of


@dataclass(frozen=True)
class Pass:
    """What one stage did in one go."""

    stage: str
    count: int
    unit: str
    seconds: float

    def __str__(self) -> str:
        rate = self.count / self.seconds
        return f"{self.stage}: {self.count} {self.unit} in {self.seconds:.1f} s ({rate:.3g} per s)"


@dataclass(frozen=True)
class Selection:
    """The story of every clip that a config's sources list."""

    config: DataConfig
    decisions: tuple[Decision, ...]
    num_videos: int
    """Rows of the sources, usable or not."""
    num_unscored: int
    """Videos that nobody has looked at yet; they have no decision."""
    faults: Mapping[str, Mapping[str, int]]
    """Rows that the listing already knows to be unusable, by data set and reason."""

    @property
    def clips(self) -> list[ClipRow]:
        """The accepted clips, in the order of the cache's rows."""
        return accepted(self.decisions)

    @property
    def rejected(self) -> list[Decision]:
        """Clips that the policy turned down."""
        return [d for d in self.decisions if d.status == "rejected"]

    @property
    def failed(self) -> list[Decision]:
        """Files and clips that could not be read."""
        return [d for d in self.decisions if d.status == "failed"]

    @property
    def counts(self) -> dict[str, int]:
        """Clips by status."""
        found = Counter(decision.status for decision in self.decisions)
        return {status: found[status] for status in ("accepted", "rejected", "failed")}

    @property
    def mixture(self) -> dict[str, int]:
        """Accepted clips by mixture, the most first."""
        return dict(Counter(clip.video.mixture for clip in self.clips).most_common())

    @property
    def buckets(self) -> dict[str, int]:
        """Accepted clips by shape, the most first."""
        shapes = (str(self.config.bucket_of(clip.width, clip.height)) for clip in self.clips)
        return dict(Counter(shapes).most_common())


@dataclass(frozen=True)
class CurationResult(Selection):
    """A published cache, and the story of every clip that was considered for it."""

    cache_path: AnyPath
    """For `LatentCache`."""
    num_rows: int
    """Rows of the cache: windows and their mirror images."""

    @property
    def version(self) -> str:
        """The name of the cache's version."""
        return self.cache_path.name

    @property
    def counts(self) -> dict[str, int]:
        """Clips by status, and `rows`."""
        return super().counts | {"rows": self.num_rows}


@dataclass
class Part:
    """One config on its way to a cache."""

    config: DataConfig
    videos: Sequence[Video]
    takedowns: Takedowns
    clips: list[ClipRow] = field(default_factory=list)
    """In the order of the listing."""
    decisions: list[Decision] = field(default_factory=list)
    """On all clips, as `judge` left them."""

    def take(self, rows: Sequence[ClipRow]) -> None:
        """Put rows of this config's videos in the place of its clips of the same ids."""
        ids = {video.video_id for video in self.videos}
        own = {row.clip_id: row for row in rows if row.video.video_id in ids}
        kept = [own.pop(clip.clip_id, clip) for clip in self.clips]
        self.clips = [*kept, *own.values()]

    def judge(self, held_out: Sequence[ClipRow] = ()) -> None:
        """Decide on the clips; what was taken down fails, whoever lists it.

        `held_out` are clips of other configs, of which none may be accepted here.
        """
        clips = [
            replace(clip, failure=reason)
            if not clip.failure and (reason := self.takedowns.of_content(clip.content_hash))
            else clip
            for clip in self.clips
        ]
        versions = versions_of(self.config.measures.scorers)
        config = self.config
        self.decisions = decide(
            clips, config.policy, *config.buckets, versions=versions, held_out=held_out
        )

    def select(self) -> Selection:
        """Tell the whole story of what was judged."""
        seen = {clip.video.video_id for clip in self.clips}
        faults: dict[str, Counter[str]] = {}
        for video in self.videos:
            if video.fault:
                reasons = faults.setdefault(video.source_id.partition("/")[0], Counter())
                reasons[video.fault.partition(":")[0]] += 1
        num_unscored = sum(video.video_id not in seen for video in self.videos)
        return Selection(self.config, tuple(self.decisions), len(self.videos), num_unscored, faults)


def agreeing(parts: Sequence[Part], fields: Sequence[str]) -> list[list[Part]]:
    """Group the parts whose configs have the same values in `fields`, which are dotted paths."""
    read = attrgetter(*fields)
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(repr(read(part.config)), []).append(part)
    return list(groups.values())


def accepted(decisions: Sequence[Decision]) -> list[ClipRow]:
    """Return the clips that a policy keeps."""
    return [decision.clip for decision in decisions if decision.status == "accepted"]
