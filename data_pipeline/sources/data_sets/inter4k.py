"""Inter4K's numbered files, which come without a manifest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from magicdistill.data_pipeline.rows import Video
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig, UniformClips
from magicdistill.data_pipeline.sources.entries import Entry
from magicdistill.data_pipeline.sources.stores import Terms, listed
from magicdistill.models.paths import Location

SIZE = (3840, 2160)
"""Width and height of its films in pixels; smaller copies have the same aspect."""
SECONDS = 5.0
"""Length of every clip."""
REJECTED = "left out: Inter4K's clips have 120 frames at 24 fps (the recipe's policy)"
TIME_SCALE = 60 / 24 / 2
"""How much longer a clip lasts when every second of its 60 frames per second is shown at 24."""


class Inter4K(SourceConfig):
    """Inter4K (Stergiou & Poppe 2022): 1,000 clips of 5.0 s at 60 fps, without a manifest.

    At 24 fps a clip has 120 frames, so a bucket of 129 would lose the whole set. `policy` says
    what to do instead:

    - `bucket-117`: keep time as it is; the recipe's bucket has at most 120 frames, such as 117;
    - `stride-2`: take every second frame and play it at 24 fps, 1.25 times slower, 150 frames;
    - `reject`: record every clip as left out.
    """

    kind: Literal["inter4k"] = "inter4k"
    path: Location
    """The folder of `1.mp4`, `2.mp4`, …: `<root>/60fps/<resolution>`."""
    policy: Literal["bucket-117", "stride-2", "reject"]
    """How clips that are shorter than the bucket are treated: `bucket-117`, `stride-2` or
    `reject`."""
    num_clips: int = Field(default=1000, ge=1)
    """Clips of the set, counted from the first."""
    license: str = "CC BY-NC-SA 4.0"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield one video per number; those that are not there are listed as missing."""
        folder = self.folder(self.path, clips_directory)
        time_scale = TIME_SCALE if self.policy == "stride-2" else 1.0
        fault = REJECTED if self.policy == "reject" else ""
        terms = Terms(self.kind, self.license, self.mixture, time_scale=time_scale)
        for number in range(1, self.num_clips + 1):
            entry = Entry(str(number), str(number), fault=fault)
            yield listed(entry, folder, f"{number}.mp4", terms)

    def uniform_clips(self) -> UniformClips | None:
        """Return the 5 seconds that clips last where the policy leaves time as it is."""
        if self.policy != "bucket-117":
            return None
        fix = "set bucket.num_frames to 117, or the source's policy to stride-2 or reject"
        return UniformClips("Inter4K's", *SIZE, SECONDS, fix)
