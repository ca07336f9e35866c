"""A config on its way through the stages of curation: its videos, their clips and the decisions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.ledger.policy import Decision, decide
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.selection.curation_result import Selection
from magicdistill.data_pipeline.stages.run_scorers import versions_of


@dataclass
class CurationState:
    """What is known so far of one config: the stages fill it in, from its videos to decisions."""

    config: DataConfig
    videos: Sequence[Video]
    """All videos that the config's sources list, also those that cannot be used."""
    takedowns: Takedowns
    clips: list[ClipRow] = field(default_factory=list)
    """Clips found in the videos, in the order of the listing."""
    decisions: list[Decision] = field(default_factory=list)
    """One decision for each clip, made by the last call of `judge`."""

    def take(self, rows: Sequence[ClipRow]) -> None:
        """Replace clips by rows of the same clip ids, and add the others; rows of videos that this
        config does not list are ignored."""
        ids = {video.video_id for video in self.videos}
        own = {row.clip_id: row for row in rows if row.video.video_id in ids}
        kept = [own.pop(clip.clip_id, clip) for clip in self.clips]
        self.clips = [*kept, *own.values()]

    def judge(self, held_out: Sequence[ClipRow] = ()) -> None:
        """Decide on all clips.

        A clip fails whose content was taken down, whichever source lists it, and a near copy of
        one is rejected. `held_out` are clips
        of other configs; no copy of them is accepted here.
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
            clips,
            config.policy,
            *config.buckets,
            versions=versions,
            held_out=held_out,
            taken_down=self.takedowns.clips(versions),
        )

    def select(self) -> Selection:
        """Return the decisions together with the counts of videos that have none."""
        seen = {clip.video.video_id for clip in self.clips}
        faults: dict[str, Counter[str]] = {}
        for video in self.videos:
            if video.fault:
                reasons = faults.setdefault(video.source_id.partition("/")[0], Counter())
                reasons[video.fault.partition(":")[0]] += 1
        num_unscored = sum(video.video_id not in seen for video in self.videos)
        return Selection(self.config, tuple(self.decisions), len(self.videos), num_unscored, faults)


def agreeing(states: Sequence[CurationState], fields: Sequence[str]) -> list[list[CurationState]]:
    """Group the states whose configs have equal values in all `fields`, dotted paths such as
    `policy.crop_bars`; groups and their members keep their order."""
    read = attrgetter(*fields)
    groups: dict[str, list[CurationState]] = {}
    for state in states:
        groups.setdefault(repr(read(state.config)), []).append(state)
    return list(groups.values())
