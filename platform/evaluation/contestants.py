"""Contestants from elsewhere: a stock pipeline of diffusers, or a folder of finished videos."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from magicdistill.data_pipeline.config import Bucket
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.latents.windows import fit
from magicdistill.data_pipeline.media.video import VideoError, frames_in, probe
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.models.checksums import digest_weights, sha256_of
from magicdistill.platform.config.validation import RecipeError

Array = np.ndarray
MODEL_INDEX = "model_index.json"


@dataclass(frozen=True)
class Request:
    """One video that is asked for."""

    name: str
    """Name of its file, without the suffix."""
    first_frame: Array
    """uint8 RGB (h, w, 3)."""
    prompt: str
    seed: int
    shape: Bucket
    """What all videos of the table have in common."""


@dataclass(frozen=True)
class Video:
    """A video as its maker gave it."""

    frames: Sequence[Array]
    """uint8 RGB (h, w, 3)."""
    fps: float


Maker = Callable[[Request], Video]


class Contestant(Protocol):
    """Who takes part with videos that this project does not make itself."""

    @property
    def name(self) -> str:
        """Name of the row."""
        ...

    @property
    def nfe(self) -> int:
        """Number of network evaluations of a video; 0 where that is not known."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether its videos are new, and so are kept in files."""
        ...

    def demand(self, names: Sequence[str]) -> None:
        """Raise RecipeError unless videos of these names can be made; at first none is named."""
        ...

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what decides the videos of these names."""
        ...

    def open(self, device: str) -> Maker:
        """Return what makes the videos, in the process that measures them."""
        ...


@dataclass(frozen=True)
class Family:
    """How a class of pipelines is used by its makers."""

    fps: float
    num_frames: int
    """Frames that it was trained on."""
    stride: int
    """Its number of frames is a multiple of this, and one more; 0 is any."""
    multiple: int
    """Height and width are multiples of this."""


FAMILIES = {
    "WanImageToVideoPipeline": Family(16, 81, 4, 16),
    "HunyuanVideoImageToVideoPipeline": Family(24, 129, 4, 16),
    "HunyuanVideo15ImageToVideoPipeline": Family(24, 121, 4, 16),
    "HunyuanSkyreelsImageToVideoPipeline": Family(24, 97, 4, 16),
    "CogVideoXImageToVideoPipeline": Family(8, 49, 8, 16),
    "LTXImageToVideoPipeline": Family(25, 161, 8, 32),
    "StableVideoDiffusionPipeline": Family(7, 25, 0, 64),
    "I2VGenXLPipeline": Family(8, 16, 0, 64),
}
"""By class, as the cards of their published weights say."""
STEPS = "num_inference_steps"


@dataclass(frozen=True)
class StockPipeline:
    """An image-to-video pipeline of diffusers, sampled with its own settings."""

    name: str
    folder: Path
    options: dict[str, float] = field(default_factory=dict)
    """`steps`, `guidance` and `fps`, where they are not the class's own."""
    keeps: bool = True

    def __str__(self) -> str:
        settings = "".join(f", {key} {value:g}" for key, value in self.options.items())
        return f"{self.kind} in {self.folder}{settings}"

    @cached_property
    def kind(self) -> str:
        """The pipeline's class."""
        path = self.folder / MODEL_INDEX
        if not path.is_file():
            raise RecipeError(
                f"--pipeline {self.name}: {self.folder} has no {MODEL_INDEX}: "
                "give a folder that a pipeline of diffusers was saved to"
            )
        return str(json.loads(path.read_text()).get("_class_name"))

    @property
    def nfe(self) -> int:
        """Return its steps, which is what a pipeline is known to take of the network."""
        return int(self.options.get("steps") or self._defaults()[STEPS].default)

    def demand(self, names: Sequence[str]) -> None:
        """Raise RecipeError for a class that is not known to make a video of a picture."""
        if self.kind not in FAMILIES:
            raise RecipeError(
                f"--pipeline {self.name}: {self.folder} is a {self.kind}, which is none of "
                f"{', '.join(FAMILIES)}"
            )

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what decides the videos: the weights and the settings."""
        parts = sorted(path for path in self.folder.iterdir() if any(path.glob("*.safetensors")))
        weights = {part.name: digest_weights(part) for part in parts}
        return {"pipeline": self.kind, "weights": weights, "options": self.options}

    def open(self, device: str) -> Maker:
        """Load the pipeline, in bf16 on a GPU."""
        import torch
        from diffusers import DiffusionPipeline

        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        pipeline = DiffusionPipeline.from_pretrained(
            self.folder, dtype=dtype, local_files_only=True
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)
        return lambda request: self._make(pipeline, request)

    def _make(self, pipeline: Any, request: Request) -> Video:
        import torch

        family, shape = FAMILIES[self.kind], request.shape
        fps = self.options.get("fps", family.fps)
        height, width = (family.multiple * max(1, round(side / family.multiple))
                         for side in (shape.height, shape.width))  # fmt: skip
        wanted = math.ceil((shape.num_frames - 1) / shape.fps * fps)
        num_frames = min(wanted, family.num_frames - 1)
        if family.stride:
            num_frames = max(1, math.ceil(num_frames / family.stride)) * family.stride
        given = {
            "image": Image.fromarray(fit(request.first_frame, Bucket(height=height, width=width))),
            "prompt": request.prompt,
            "height": height,
            "width": width,
            "num_frames": num_frames + 1,
            **dict.fromkeys(("fps", "frame_rate", "target_fps"), round(fps)),
            **dict.fromkeys(("guidance_scale", "max_guidance_scale"), self.options.get("guidance")),
            STEPS: self.nfe,
            "generator": torch.Generator().manual_seed(request.seed),
            "output_type": "np",
        }
        taken = self._defaults()
        values = {k: v for k, v in given.items() if k in taken and v is not None}
        frames = np.asarray(pipeline(**values).frames[0])
        return Video([*(np.clip(frames, 0, 1) * 255).round().astype(np.uint8)], fps)

    def _defaults(self) -> Any:
        import diffusers

        return inspect.signature(getattr(diffusers, self.kind).__call__).parameters


@dataclass(frozen=True)
class VideoFolder:
    """Finished videos, named as `--export_inputs` names them."""

    name: str
    folder: Path
    nfe: int = 0
    keeps: bool = False

    def __str__(self) -> str:
        return f"videos in {self.folder}"

    def demand(self, names: Sequence[str]) -> None:
        """Raise RecipeError unless every video is there and can be opened."""
        if not self.folder.is_dir():
            raise RecipeError(f"--videos {self.name}: there is no folder {self.folder}")
        missing = [name for name in names if not self._path(name).is_file()]
        if missing:
            raise RecipeError(
                f"--videos {self.name}: {len(missing)} of {len(names)} videos are not in "
                f"{self.folder}, for example {missing[0]}.mp4; --export_inputs DIR writes the "
                "first frames and prompts by these names"
            )
        for name in names:
            try:
                probe(self._path(name))
            except VideoError as error:
                raise RecipeError(f"--videos {self.name}: {name}.mp4: {error}") from None

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the content of the files."""
        return {"videos": [sha256_of(self._path(name)) for name in names]}

    def open(self, device: str) -> Maker:
        """Return what reads the files."""
        return self._read

    def _read(self, request: Request) -> Video:
        path = self._path(request.name)
        frames = [np.asarray(frame.rgb) for frame in frames_in(path)]
        return Video(frames, probe(path).fps)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.mp4"


def fitted(video: Video, shape: Bucket) -> tuple[Array, str]:
    """Bring a video to the shape of a table; say what was changed, or nothing.

    The frames are those that show at the table's times. A video that is longer is cut at the end,
    and one that is shorter is played so much slower, because all metrics take as many frames of
    everyone. A frame is cropped about its centre to the aspect of the size.
    """
    count = len(video.frames)
    times_s = np.arange(shape.num_frames) / shape.fps
    lasts_s, needed_s = (count - 1) / video.fps, float(times_s[-1])
    slower = max(1.0, needed_s / lasts_s) if lasts_s else 1.0
    numbers = np.minimum(np.floor(times_s / slower * video.fps + 0.5).astype(int), count - 1)
    frames = np.stack([fit(video.frames[number], shape) for number in numbers])
    height, width = video.frames[0].shape[:2]
    if (count, height, width, video.fps) == (*frames.shape[:3], shape.fps):
        return frames, ""
    played = f", played {slower:.2f} times slower" if slower > 1 else ""
    return frames, f"from {count} frames of {height}x{width} at {video.fps:g} fps{played}"


def names_of(clips: Sequence[ClipRow], num_samples: int) -> list[list[str]]:
    """Return the names of the videos of each clip: the entry of the protocol's list and a number.

    VBench names videos so: the prompt, and the number of the sample.
    """
    stems: list[str] = []
    for clip in clips:
        stem = clip.video.entry.replace("/", "_")[:180] or clip.clip_id
        stems.append(stem if stem not in stems else f"{stem} {clip.clip_id[:8]}")
    return [[f"{stem}-{sample}" for sample in range(num_samples)] for stem in stems]


def export_inputs(folder: Path, requests: Sequence[Request]) -> None:
    """Write the first frame of each video as a picture and all prompts as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for request in requests:
        picture = f"{request.name}.png"
        Image.fromarray(request.first_frame).save(folder / picture)
        rows.append({"video": f"{request.name}.mp4", "first_frame": picture}
                    | {"prompt": request.prompt, "seed": request.seed})  # fmt: skip
    write_text(folder / "inputs.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
