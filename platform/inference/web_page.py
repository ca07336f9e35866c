"""Serve a page on this machine that turns a portrait into a video, beside the teacher's."""

import socket
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
import uvicorn
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import nn

from magicdistill.data_pipeline.media.images import ImageError, image_size
from magicdistill.platform.export.pretrained_model import (
    ASSETS,
    STUDENT_STEPS,
    Pretrained,
    find_student,
    find_teacher,
)
from magicdistill.platform.inference.orders import Order
from magicdistill.platform.inference.sample_video import VideoSampler, choose_threads
from magicdistill.platform.runs.logs import ExplainedError, say

LOOPBACK = "127.0.0.1"
HOSTS = [LOOPBACK, "localhost"]
"""Host names that the page accepts, so that another site's name cannot be pointed at it."""
MAX_MB, MAX_MEGAPIXELS = 20, 50
"""Largest upload: a picture of few bytes may have pixels that fill the memory."""
POLICY = "default-src 'self' blob: data: 'unsafe-inline'"
"""Content security policy: the page loads nothing from another machine."""
EXAMPLE = ASSETS / "portrait-tiny" / "face.png"


class Made(NamedTuple):
    """A finished MP4 and how long it took."""

    mp4: bytes
    network_s: float
    total_s: float
    """Seconds in all, including the VAE and the video file."""


class StepTimer:
    """Counts the seconds in which a network runs."""

    def __init__(self, network: nn.Module) -> None:
        self.total_s = self._start_s = 0.0
        network.register_forward_pre_hook(self._start)
        network.register_forward_hook(self._stop)

    def _start(self, network: nn.Module, inputs: object) -> None:
        self._start_s = _now_s()

    def _stop(self, network: nn.Module, inputs: object, output: object) -> None:
        self.total_s += _now_s() - self._start_s


class Studio:
    """A few-step model and its many-step teacher; makes one video at a time."""

    def __init__(self, model: Pretrained) -> None:
        """Load both and make a video with each, so that the first request is not the slowest."""
        choose_threads(model)
        teacher = find_teacher(model)
        self.models = {count: find_student(model, count) for count in STUDENT_STEPS}
        self.models[teacher.sampler.num_steps] = teacher
        folders = {one.transformer: one for one in self.models.values()}
        self._samplers = {path: VideoSampler(one) for path, one in folders.items()}
        first, *others = self._samplers.values()
        for sampler in others:  # all have the same encoders, which may be far larger than they
            sampler.encoder = first.encoder
        self._watches = {path: StepTimer(one.velocity) for path, one in self._samplers.items()}
        self._lock = Lock()
        with tempfile.NamedTemporaryFile(suffix=".png") as grey:
            Image.new("RGB", (64, 64), "grey").save(grey.name)
            for count in self.models:
                self.make(Path(grey.name).read_bytes(), count)

    @property
    def reads_prompts(self) -> bool:
        """Whether the models come with text encoders."""
        return all(model.encoders is not None for model in self.models.values())

    def make(
        self, picture: bytes, num_steps: int, seed: int = 0, prompt: str | None = None
    ) -> Made:
        """Make a video from a picture file, by default with the null prompt.

        Raises ExplainedError if it is not a picture.
        """
        model = self.models[num_steps]
        with self._lock, tempfile.TemporaryDirectory() as folder:
            sampler = self._samplers[model.transformer]
            watch = self._watches[model.transformer]
            sampler.model = model
            order = Order(Path(folder) / "portrait", Path(folder) / "video.mp4", seed, prompt)
            order.image.write_bytes(picture)
            start_s, before_s = _now_s(), watch.total_s
            try:
                _demand_pixels(order.image)
                sampler.make(order)
                total_s, network_s = _now_s() - start_s, watch.total_s - before_s
                return Made(order.out.read_bytes(), network_s, total_s)
            except ExplainedError as error:
                message = str(error).replace(str(order.image), "the upload")
                raise ExplainedError(message) from None


def web_app(studio: Studio) -> Starlette:
    """Return the application: the page, and POST /videos?steps=4&seed=0 with a picture.

    A model with text encoders also takes `&prompt=`; without it, or empty, it is the null prompt.
    """

    async def page(request: Request) -> Response:
        return HTMLResponse(_page(studio), headers={"Content-Security-Policy": POLICY})

    async def example(request: Request) -> Response:
        return FileResponse(EXAMPLE)

    async def video(request: Request) -> Response:
        num_steps = _integer(request, "steps", min(STUDENT_STEPS))
        seed = _integer(request, "seed", 0)
        prompt = request.query_params.get("prompt") or None
        if num_steps not in studio.models:
            raise HTTPException(422, f"steps {num_steps}: choose one of {[*studio.models]}")
        if prompt is not None and not studio.reads_prompts:
            raise HTTPException(422, "prompt: this model comes without text encoders; leave it out")
        picture = await _upload(request)
        try:
            made = await run_in_threadpool(studio.make, picture, num_steps, seed, prompt)
        except ExplainedError as error:
            raise HTTPException(422, str(error)) from None
        parts = {"network": made.network_s, "total": made.total_s}  # the header has milliseconds
        timing = ", ".join(f"{name};dur={1000 * value_s:.1f}" for name, value_s in parts.items())
        return Response(made.mp4, media_type="video/mp4", headers={"Server-Timing": timing})

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/example.png", example),
            Route("/videos", video, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers={HTTPException: refusal},
    )


def serve(model: Pretrained, port: int) -> None:
    """Serve the page on the loopback interface until Ctrl-C; port 0 takes a free port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise ExplainedError(f"--port {port}: {error}; give another, or 0 for any") from None
        app = web_app(Studio(model))
        server.listen()
        say(f"http://{LOOPBACK}:{server.getsockname()[1]} is ready; Ctrl-C ends it")
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, timeout_graceful_shutdown=1
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[server])


async def _upload(request: Request) -> bytes:
    """Return the body; raise HTTPException where it says that it is no picture, or is too large."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("image/"):
        raise HTTPException(415, f"choose a picture, such as a JPEG or PNG: this is {kind or '?'}")
    picture, num_bytes = bytearray(), 0
    async for part in request.stream():  # to the end: a sender listens when all is sent
        num_bytes += len(part)
        if num_bytes <= MAX_MB << 20:
            picture += part
    if num_bytes > len(picture):
        raise HTTPException(413, f"the picture has more than {MAX_MB} MB")
    return bytes(picture)


def _demand_pixels(path: Path) -> None:
    """Raise ExplainedError where a picture's header says that it is too large to be decoded."""
    try:
        width, height = image_size(path)
    except ImageError as error:
        raise ExplainedError(str(error)) from None
    if width * height > MAX_MEGAPIXELS * 10**6:
        raise ExplainedError(
            f"the picture has {width} x {height} pixels, and at most {MAX_MEGAPIXELS} million are "
            "taken: make it smaller"
        )


def _integer(request: Request, name: str, default: int) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise HTTPException(422, f"{name} {value!r}: it is a number from 0 to 999999999")
    return int(value)


def _now_s() -> float:
    """Return the time, in seconds, after waiting for the GPU to finish its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@cache
def _template() -> Environment:
    return Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)


def _page(studio: Studio) -> str:
    many = max(studio.models)
    names = {count: model.transformer.name for count, model in studio.models.items()}
    template = _template().get_template("web_page.html.jinja")
    return template.render(
        names=names,
        many=many,
        max_mb=MAX_MB,
        max_megapixels=MAX_MEGAPIXELS,
        reads_prompts=studio.reads_prompts,
    )
