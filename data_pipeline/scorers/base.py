"""What all scorers share: the frames they see, and the name of a way of scoring."""

from collections.abc import Callable, Hashable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import numpy as np
from pydantic import AfterValidator, Field

from magicdistill.data_pipeline.rows import Array, digest
from magicdistill.models.checksums import sha256_of
from magicdistill.models.config import Config
from magicdistill.models.paths import LocalFile

Weights = Annotated[LocalFile, AfterValidator(Path.absolute)]
"""Type of a field that takes a file or folder of weights: its content, not its place, counts."""
Values = dict[str, float | None]


def _whole_above_one(count: float) -> float:
    if count > 1 and count % 1:
        raise ValueError(f"Ray shares out one GPU, but no more: give {round(count)} or at most 1")
    return count


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)]
"""GPUs that a process reserves: a share of one, or a whole number."""


class Frame:
    """A frame that remembers what scorers derive from it."""

    def __init__(self, rgb: Array) -> None:
        """Hold a frame that is in memory, uint8 RGB (h, w, 3)."""
        self._derived: dict[Hashable, Any] = {"rgb": rgb}

    @property
    def rgb(self) -> Array:
        """The frame, uint8 RGB (h, w, 3)."""
        return self._derived["rgb"]

    def derive(self, key: Hashable, make: Callable[[Array], Any]) -> Any:
        """Return `make(rgb)`, made once for all scorers that use the same key."""
        return self._once(key, lambda: make(self.rgb))

    def gray(self, short_side: int) -> Array:
        """Return 8-bit luma with at most that short side in pixels; small frames stay as is."""
        return self._once(("gray", short_side), lambda: self._luma(short_side))

    def _luma(self, short_side: int) -> Array:
        import cv2

        return cv2.cvtColor(shrunk(self.rgb, short_side), cv2.COLOR_RGB2GRAY)

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


class Scorer(Config):
    """Settings of one scorer, with its two pure functions: a look at a frame, and a summary.

    A scorer is one file with a subclass that names itself, `kind: Literal["mine"] = "mine"`, and
    one line in `registry.py`, or `SCORERS.register` in a plugin. It decides nothing:
    `Policy.limits` judges its numbers by their names, `<kind>.<score>`.
    """

    kind: str
    """Name of the scorer, which decides its other settings."""
    MODEL: ClassVar[str]
    """What measures, for people who read the stored scores."""
    SCORES: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers that `summary` returns."""
    CODE: ClassVar[int] = 1
    """Raised when the code changes its meaning: this scorer's results are then taken again."""
    COSTLY: ClassVar[bool] = False
    """Runs after the cheap scorers, on the clips that the policy does not already reject."""
    ON_GPU: ClassVar[bool] = False
    """Its network runs on the GPU that a process has reserved."""
    PROXY_FOR: ClassVar[str] = ""
    """The measure that this one stands in for."""

    def look(self, frame: Frame, last: Frame | None) -> Any:
        """Return what there is to remember of a sampled frame; `last` is the sample before."""
        raise NotImplementedError

    def summary(self, looks: Sequence[Any], step_s: float) -> Values:
        """Return the scores of a clip from the looks at its samples, `step_s` seconds apart."""
        raise NotImplementedError

    def blob(self, looks: Sequence[Any]) -> bytes:
        """Return what duplicates are found by; most scorers have nothing to add."""
        return b""

    def indices(self, start: int, stop: int, fps: float) -> Sequence[int]:
        """Return the frames of [start, stop) to look at."""
        raise NotImplementedError

    def weights_files(self) -> Sequence[Path] | None:
        """Return the files of the model: none for a formula, null where they are absent.

        Raises:
            FileNotFoundError: if the recipe names a file that does not exist.
        """
        return ()

    @property
    def version(self) -> str:
        """Name of code, settings and weights together, or why there can be no score."""
        files = self.weights_files()
        if files is None:
            return f"{ABSENT} no weights for {self.kind}"
        settings = self.model_dump_json(exclude=_path_fields(type(self)))
        return digest(self.kind, self.CODE, settings, *map(sha256_of, files))[:12]

    def describe(self) -> dict[str, object]:
        """Return model, version and preprocessing, as stored beside the scores."""
        return {
            "scorer": self.kind,
            "version": self.version,
            "model": self.MODEL,
            "proxy_for": self.PROXY_FOR,
            "code": self.CODE,
            "settings": self.model_dump(mode="json"),
            "weights_sha256": [sha256_of(file) for file in self.weights_files() or ()],
        }


ABSENT = "absent:"
"""Begins the version of a scorer that the recipe asks for and that has no weights."""


class RateScorer(Scorer):
    """Looks at frames at a fixed rate, so that it can work while shots are searched for."""

    sampling_fps: float = Field(default=2.0, gt=0)
    """Frames per second that are looked at."""

    def step(self, fps: float) -> int:
        """Return the distance between samples in frames."""
        return max(1, round(fps / self.sampling_fps))

    def indices(self, start: int, stop: int, fps: float) -> Sequence[int]:
        """Return the multiples of the step inside the span, whatever its start."""
        step = self.step(fps)
        return range(-(-start // step) * step, stop, step)


class CountScorer(Scorer):
    """Looks at a fixed number of frames, each the middle of an equal part of the clip."""

    COSTLY: ClassVar = True
    num_frames: int = Field(default=3, ge=1)
    """Frames of a clip that are looked at."""

    def indices(self, start: int, stop: int, fps: float) -> Sequence[int]:
        """Return the middles of `num_frames` equal parts."""
        return middles(start, stop, self.num_frames)


def middles(start: int, stop: int, count: int) -> list[int]:
    """Return the middle frame of each of `count` equal parts of [start, stop)."""
    shares = (np.arange(count) + 0.5) / count
    return [int(start + share * (stop - start)) for share in shares]


def given_or_packaged(
    given: Path | None, kind: str, package: str, file: str
) -> Sequence[Path] | None:
    """Return the file of weights that a recipe gives, else the one inside a package, else None.

    Raises:
        FileNotFoundError: if the given file does not exist.
    """
    path = packaged(package, file) if given is None else existing(given, kind)
    return (path,) if path else None


def packaged(package: str, file: str) -> Path | None:
    """Return a file of an installed package without importing it, or None."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    return path if path.is_file() else None


def existing(path: Path, kind: str) -> Path:
    """Return the path, or raise FileNotFoundError that names the scorer."""
    if not path.exists():
        raise FileNotFoundError(f"the weights of scorer {kind!r}, {path}, do not exist")
    return path


def shrunk(image: Array, short_side: int) -> Array:
    """Return the image with at most that short side in pixels."""
    import cv2

    size = shrunk_size(image.shape[1], image.shape[0], short_side)
    if size == image.shape[1::-1]:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def shrunk_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height of a picture that has at most that short side in pixels."""
    scale = min(1.0, short_side / min(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def longest_run_s(flags: Sequence[bool], step_s: float) -> float:
    """Return the length in seconds of the longest run of true samples."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest * step_s


def _path_fields(kind: type[Scorer]) -> set[str]:
    fields = kind.model_fields.items()
    return {name for name, field in fields if Weights in get_args(field.annotation)}
