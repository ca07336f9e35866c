"""Make a video file from a first frame, with any model and of any length."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magicdistill.data_pipeline.config import nearest_bucket
from magicdistill.data_pipeline.media.video import (
    VideoError,
    hash_content,
    probe,
    read_comment,
    read_frames,
    write_frames,
)
from magicdistill.data_pipeline.progress import Bars
from magicdistill.data_pipeline.rows import digest
from magicdistill.models.checksums import digest_weights
from magicdistill.models.diffusion.context_windows import ContextWindows
from magicdistill.models.diffusion.long_video import slide
from magicdistill.models.diffusion.samplers import Experts, Velocity
from magicdistill.models.locations import is_int8
from magicdistill.models.metrics.fidelity import psnr_db
from magicdistill.models.metrics.seams import SeamMeter, Seams
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.int8 import load_int8, weight_bytes
from magicdistill.models.networks.offload import offload_layers
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.platform.export.dtypes import DTYPES
from magicdistill.platform.export.pretrained_model import Dtype, Pretrained
from magicdistill.platform.inference.contact_sheets import contact_sheet, to_uint8
from magicdistill.platform.inference.faces import STRANGER, Likeness, LikenessMeter, framed
from magicdistill.platform.inference.generate import generate
from magicdistill.platform.inference.orders import NO_ENCODERS, Order, plan_windows, read_picture
from magicdistill.platform.inference.output_files import MARK, demand_free
from magicdistill.platform.runs.logs import ExplainedError, say

if TYPE_CHECKING:
    from magicdistill.models.networks.conditioning.prompt_encoder import AnyPromptEncoder

NUM_SHOWN = 16
"""Number of frames in a contact sheet."""
SHOWN_PX = 160
"""Longest side of a frame in the contact sheet, in pixels."""
SMALL_BYTES = 1 << 30
"""Weights of fewer bytes are a small network."""
FrameProgress = Callable[[int, int], None]
"""Called with the number of frames written so far and their total."""


@dataclass(frozen=True)
class Drift:
    """How far a long video goes from where it began."""

    seams: Seams
    likeness: Likeness | None
    """None where the first frame has no face that is found."""


class VideoSampler:
    """A loaded model; makes one video at a time, so that each depends on its own order alone."""

    def __init__(self, model: Pretrained, device: str | None = None) -> None:
        self.model = model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.velocity = self._placed(model.transformer)
        self.field: Velocity = self.velocity
        """What is sampled: the network, or both experts by the noise level."""
        if model.low_noise is not None:
            low = self._placed(model.low_noise)
            self.field = Experts(self.velocity, low, model.boundary)
        self.vae = VideoVae.load(model.vae).to(self.device).requires_grad_(False)

    def _placed(self, folder: Path) -> VelocityModel:
        velocity = self._velocity(folder).eval().requires_grad_(False)
        if self.model.offload:
            offload_layers(velocity.transformer, self.device)
        else:
            velocity.to(self.device)
        return velocity

    def _velocity(self, folder: Path) -> VelocityModel:
        if self.model.dtype == "int8":
            try:
                return VelocityModel(load_int8(folder))
            except ModuleNotFoundError as error:
                raise ExplainedError(str(error)) from None
        name = self.model.dtype or ("bf16" if self.device == "cuda" else "fp32")
        return VelocityModel(load_transformer(folder)).to(DTYPES[name])

    @cached_property
    def encoder(self) -> "AnyPromptEncoder | None":
        """The prompt encoder, if the model comes with one; stays on the CPU under offload."""
        if self.model.encoders is None:
            return None
        from magicdistill.models.networks.conditioning.prompt_encoder import (
            PromptEncoder,  # seconds to import, and the shipped models have none
        )

        int8, stride = self.model.dtype == "int8", self.model.image_token_stride
        options = {} if stride is None else {"image_token_stride": stride}
        try:
            encoder = PromptEncoder.load(self.model.encoders, torch.float32, int8=int8, **options)
        except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
            raise ExplainedError(f"the text encoders: {error}") from None
        if stride is not None and not encoder.sees_images:
            raise ExplainedError(
                f"--encoders {self.model.encoders}: this model takes image tokens of the first "
                "frame, which these encoders cannot see; name a folder of its pipeline"
            )
        return encoder.to("cpu" if self.model.offload else self.device)

    def make(
        self, order: Order, progress: FrameProgress = lambda done, total: None
    ) -> "Drift | None":
        """Write an order's video and contact sheet; measure how a long one drifts."""
        image = read_picture(order.image)
        bucket = nearest_bucket(image.shape[1], image.shape[0], self.model.buckets)
        windows = plan_windows(order, bucket)
        demand_free([order], force=True)
        per_second = round(bucket.fps)
        meter, likeness = SeamMeter(windows.seams(), windows.overlap, per_second), LikenessMeter()
        shown = np.linspace(0, windows.total - 1, min(NUM_SHOWN, windows.total)).round()
        kept: list[np.ndarray] = []

        def frames() -> Iterator[np.ndarray]:
            done = 0
            for part in self.parts(framed(image, bucket, order.fit), order, windows):
                meter.add(part)
                for frame in rearrange(to_uint8(part[0]), "c t y x -> t y x c"):
                    if done in shown:
                        kept.append(_thumbnail(frame))
                    if windows.count > 1 and done % per_second == 0:
                        likeness.add(frame)
                    yield frame
                    done += 1
                progress(done, windows.total)

        order.out.parent.mkdir(parents=True, exist_ok=True)
        write_frames(order.out, frames(), bucket.fps, comment=describe(self.model, order))
        sheet = torch.from_numpy(np.stack(kept)).float() / 127.5 - 1
        clip = rearrange(sheet, "t y x c -> 1 c t y x")
        name = f"seed {order.seed}"
        contact_sheet(order.sheet, {name: clip}, frame_stride=1, zoom=1, mark=name)
        return Drift(meter.result(), likeness.result()) if windows.count > 1 else None

    def parts(self, image: np.ndarray, order: Order, windows: ContextWindows) -> Iterator[Tensor]:
        """Yield pixels (1 3 t y x) from a first frame (y x 3) of the model's size."""
        # a copy: a picture that needed no crop is read-only
        first = torch.tensor(image, device=self.device).float() / 127.5 - 1
        first = rearrange(first, "y x c -> 1 c 1 y x")
        window = partial(
            self._window, self._conditions_of(order.prompt), order.seed, windows.num_frames
        )
        with torch.no_grad():
            yield from slide(window, first, windows, pull=order.pull)

    def _window(
        self,
        conditions_of: Callable[[Tensor], tuple[Conditions, Conditions]],
        seed: int,
        num_frames: int,
        start: Tensor,
        index: int,
    ) -> Tensor:
        known = self.vae.encode(start)
        prior = self.vae.image_prior(start, known, num_frames)
        conditions = conditions_of(start[:, :, 0])
        prompt, null = (replace(one, image_prior=prior) for one in conditions)
        shape = (known.shape[1], self.vae.latent_frames(num_frames), *known.shape[3:])
        latents = generate(
            self.field,
            self.model.sampler,
            prompt,
            shape,
            seed=seed,
            positions=[0],
            null=null,
            known=known if index else None,
            window=index,
        )
        return self.vae.decode(latents)

    def _conditions_of(
        self, prompt: str | None
    ) -> Callable[[Tensor], tuple[Conditions, Conditions]]:
        """Return what gives a window's conditions from its first frame (1 3 y x).

        They are those of the prompt and of the null prompt, the same in every window unless the
        encoder sees the frame.
        """
        if self.model.image_token_stride is not None:
            return partial(self._conditions, prompt)
        found = self._conditions(prompt)
        return lambda frame: found

    def _conditions(
        self, prompt: str | None, frame: Tensor | None = None
    ) -> tuple[Conditions, Conditions]:
        """Return the conditions of the prompt and the null prompt, without an image prior."""
        if self.encoder is None:
            if prompt is not None:
                raise ExplainedError(NO_ENCODERS)
            text_dim, pooled_dim = self.velocity.backbone.text_dims
            null = Conditions.null(
                torch.zeros(1, 1, 1, 1, 1, device=self.device),
                num_tokens=self.model.num_text_tokens,
                text_dim=text_dim,
                pooled_dim=pooled_dim,
            )
            return null, null
        null = self.encoder.null(1, frame).to(self.device)
        return (null if prompt is None else self.encoder([prompt], frame).to(self.device)), null


def sample_one(model: Pretrained, order: Order) -> None:
    """Make one video on this machine and print where it is."""
    choose_threads(model)
    bars = Bars("frame")
    sampler = VideoSampler(model)
    start_s = time.monotonic()
    drift = sampler.make(order, partial(bars, "sampling"))
    say(f"made in {time.monotonic() - start_s:.1f} s on {sampler.device}, {model.sampler}")
    if model.dtype == "int8":
        say(f"int8: {weight_bytes(sampler.velocity) / 1e6:.2f} MB of weights")
        if sampler.encoder is not None:
            say(f"int8: {weight_bytes(sampler.encoder) / 1e6:.2f} MB of the encoders' weights")
    if drift is not None:
        print(format_seams(drift.seams), format_likeness(drift.likeness), sep="\n", flush=True)
    say(f"video  {order.out}")
    say(f"sheet  {order.sheet}")


def choose_threads(model: Pretrained) -> None:
    """Compute with one thread where a small network has no GPU, unless OMP_NUM_THREADS is set.

    Its kernels end within microseconds, and on a busy processor threads then spend their time
    waiting for each other.
    """
    num_bytes = sum(path.stat().st_size for path in model.transformer.rglob("*") if path.is_file())
    is_small = num_bytes < SMALL_BYTES and not torch.cuda.is_available()
    if is_small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def report_difference(model: Pretrained, order: Order) -> None:
    """Print how close one window of a model is to the same window in bf16."""
    name = model.dtype or "full precision"
    say(f"PSNR of one window, {name} to bf16: {difference_db(model, order, model.dtype):.1f} dB")


def difference_db(model: Pretrained, order: Order, dtype: Dtype | None) -> float:
    """Return the PSNR, in dB, of one window against the same window from the bf16 weights."""
    if is_int8(model.transformer):
        raise ExplainedError("--psnr: the weights are int8 already, and there is no bf16 of them")
    picture = read_picture(order.image)
    bucket = nearest_bucket(picture.shape[1], picture.shape[0], model.buckets)
    windows = plan_windows(replace(order, seconds=None), bucket)
    image = framed(picture, bucket, order.fit)
    first, second = (
        next(VideoSampler(replace(model, dtype=dtype)).parts(image, order, windows)).cpu()
        for dtype in (dtype, "bf16")
    )
    return float(psnr_db(first, second))


def describe(model: Pretrained, order: Order) -> str:
    """Return a hash of everything that decides the pixels of a video."""
    parts = (
        digest_weights(model.transformer),
        *([digest_weights(model.low_noise), model.boundary] if model.low_noise else []),
        digest_weights(model.vae),
        model.sampler.model_dump_json(),
        model.buckets,
        model.dtype,
        hash_content(order.image),
        replace(order, image=Path(), out=Path()),
    )
    encoders = () if order.prompt is None else (_encoders_of(model),)
    if (stride := model.image_token_stride) is not None:
        encoders = (_encoders_of(model), stride)
    return f"{MARK} {digest(*parts, *encoders)}"


def _encoders_of(model: Pretrained) -> str | None:
    from magicdistill.data_pipeline.stages.embed import encoder_fingerprint  # a second to import

    try:
        sees_images = model.image_token_stride is not None
        return model.encoders and encoder_fingerprint(model.encoders, sees_images=sees_images)
    except FileNotFoundError as error:
        raise ExplainedError(str(error)) from None


def is_made(model: Pretrained, order: Order) -> bool:
    """Tell whether the video of an order exists, is complete, and was made in the same way."""
    if not order.out.is_file() or not order.sheet.is_file():
        return False
    try:
        last = probe(order.out).num_frames - 1
        same = read_comment(order.out) == describe(model, order)
        return same and len(list(read_frames(order.out, [last]))) == 1
    except (VideoError, FileNotFoundError):
        return False


def format_seams(seams: Seams) -> str:
    """Describe the seams and the drift of a long video in words."""
    return (
        f"frame differences (levels of 255): seams {seams.seam:.2f}, largest "
        f"{seams.seam_largest:.2f}; within windows {seams.within:.2f}, largest "
        f"{seams.within_largest:.2f}; ratio {seams.seam / seams.within:.2f}\n"
        f"drift from the first second to the last: colour means {seams.mean_drift:.1f}, standard "
        f"deviations {seams.std_drift:.1f} levels; sharpness x {seams.sharpness:.2f}"
    )


def format_likeness(likeness: Likeness | None) -> str:
    """Say in words whether the face stays the same person's."""
    if likeness is None:
        return (
            "identity: not measured, for CenterFace finds no face in the first frame, or is not "
            "installed (weights.txt)"
        )
    verdict = ": as unlike as another person" if likeness.lowest <= STRANGER else ""
    lost = f"; no face is found in {likeness.lost_s} s" if likeness.lost_s else ""
    return (
        f"identity (proxy): likeness of the face to the first frame's {likeness.values[-1]:.2f} at "
        f"the end, lowest {likeness.lowest:.2f} after {likeness.lowest_s} s{verdict}{lost}"
    )


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    scale = SHOWN_PX / max(frame.shape[:2])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
