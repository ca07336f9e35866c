"""Stages of the data pipeline and first frames on a GPU, each against the processor's result.

Small networks with random weights of the classes that users name stand in for theirs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gpu_parts import small_models
from gpu_parts.results import Bench, Row
from magicdistill.data_pipeline.captioning.base import Task
from magicdistill.data_pipeline.captioning.local_model import LocalModel
from magicdistill.data_pipeline.config import Bucket, DataConfig, Decoder, Measures, Prompts
from magicdistill.data_pipeline.latents.text_shards import (
    committed_texts,
    open_text_shard,
    read_text,
)
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.maintenance.reconstruction import reconstruct
from magicdistill.data_pipeline.media.video import decode, write_mp4
from magicdistill.data_pipeline.rows import ClipRow, Video, clips_from_table, clips_to_table
from magicdistill.data_pipeline.scorers import embedding
from magicdistill.data_pipeline.scorers.base import Frame
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.stages import transnet
from magicdistill.data_pipeline.stages.embed import (
    PROMPT_SCHEMA,
    Embed,
    EmbedJob,
    prompts_fingerprint,
)
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob, fingerprint_of
from magicdistill.data_pipeline.stages.run_scorers import AddScores, score_clip
from magicdistill.data_pipeline.stages.score import score_video
from magicdistill.platform.cluster.worker_failures import GpuMemoryError, explained_memory
from magicdistill.platform.config.first_frame_sections import PriorConfig
from magicdistill.platform.export.pretrained_model import ASSETS, find_pretrained
from magicdistill.platform.inference.first_frames import ImagePriors
from magicdistill.platform.inference.orders import Order, read_picture
from magicdistill.platform.inference.web_page import StepTimer

VAE = ASSETS / "portrait-tiny" / "vae"
PROMPT = "a face"


@dataclass(frozen=True)
class Stage:
    """Something that computes on a GPU, and elsewhere where there is none or it is hidden."""

    run: Callable[[int], Any]
    """Returns numbers; takes the GPUs that a process may use, 0 or 1."""
    tolerance: float
    """Largest mean difference to the processor's result, relative to its mean size."""


def measure_stages(bench: Bench) -> Iterator[Row]:
    """Yield the seconds of each stage, where its network was, and whether its result agrees."""
    torch.manual_seed(0)
    film = make_film(bench.folder / "film.mp4")
    scorer = embedding.Embedding(clip=small_models.save_clip(bench.folder / "clip"))
    for name, stage in stages(bench.folder, film, scorer).items():
        yield attempt(name, partial(compared, bench, name, stage))
    for name, measure in {
        "scorers in a child process": partial(added_scores, film, scorer),
        "a full GPU is explained": full_memory,
    }.items():
        if bench.on_gpu:
            yield attempt(name, partial(measure, bench, name))
        else:
            yield Row(name, note="left out: there is no GPU")
    yield page_timer(bench)


def attempt(name: str, call: Callable[[], Row]) -> Row:
    """Measure, or report what went wrong: the other stages go on."""
    try:
        return call()
    except TimeoutError:
        raise
    except Exception as error:
        return Row(name, problem=f"{type(error).__name__}: {' '.join(str(error).split())}")


def stages(folder: Path, film: ClipRow, scorer: embedding.Embedding) -> dict[str, Stage]:
    """Return the stages by name, each with a small network and an input."""
    assert scorer.clip
    encoders = small_models.save_encoders(folder / "encoders")
    captioner = small_models.save_captioner(folder / "captioner")
    painter = small_models.save_text_to_image(folder / "text-to-image")
    curated = folder / "curated"
    recipe, path = write_latents(curated, film), Path(film.video.path)
    return {
        "CLIP embeddings": Stage(partial(clip_embeddings, scorer, film), 1e-2),
        "text embeddings": Stage(partial(text_embeddings, encoders), 1e-3),
        "captions of a local model": Stage(partial(captions, captioner), 0),
        "first frames, retrieved": Stage(partial(retrieved, scorer.clip), 0),
        "first frames, painted": Stage(partial(painted, painter), 0.1),  # in bfloat16 on a GPU
        "reconstruction of latents": Stage(partial(reconstructed, recipe, curated), 1e-2),
        "cuts by TransNetV2": Stage(partial(cuts, path), 0),
    }


def compared(bench: Bench, name: str, stage: Stage) -> Row:
    """Run a stage on the bench's device and on the processor; say where its networks were."""
    start_s = bench.now_s()
    with watched_devices() as seen:
        found = stage.run(int(bench.on_gpu))
    seconds = bench.now_s() - start_s
    with without_gpu():
        gap = difference(found, stage.run(0))
    problem = None
    if seen != {bench.device.type}:
        problem = f"networks ran on {' and '.join(sorted(seen)) or 'nothing'}"
    elif not gap <= stage.tolerance:
        problem = f"differs from the processor's result by {gap:.2g} of it"
    note = f"on {bench.device.type}; differs by {gap:.2g} from the processor's"
    return Row(name, forward_s=seconds, note=note, problem=problem)


def difference(found: Any, expected: Any) -> float:
    """Return the mean difference relative to the mean size; infinity where shapes differ."""
    a, b = (torch.tensor(np.array(each)).double() for each in (found, expected))
    if a.shape != b.shape:
        return math.inf
    return float((a - b).abs().mean() / b.abs().mean())


@contextmanager
def watched_devices() -> Iterator[set[str]]:
    """Give the kinds of devices on which there are parameters of modules that run in the body."""
    seen = set[str]()

    def note(module: nn.Module, _: object) -> None:
        seen.update(parameter.device.type for parameter in module.parameters(recurse=False))

    hook = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def without_gpu() -> Iterator[None]:
    """Hide the GPU from what asks torch for one in the body, and forget networks that are on it."""
    forget_networks()
    with mock.patch.object(torch.cuda, "is_available", lambda: False):
        yield
    forget_networks()


def forget_networks() -> None:
    """Let scorers load their networks again."""
    embedding._model.cache_clear()
    transnet._model.cache_clear()


def make_film(path: Path) -> ClipRow:
    """Write a film of one person and then another; return its first shot."""
    people = [render_clip(seed, num_frames=24) for seed in range(2)]
    write_mp4(path, np.concatenate(people), 24)
    video = Video("film", "film", path.as_uri(), str(path), "1-1", "CC0", "portrait", False)
    return score_video(video, path, Measures())[0]


def clip_embeddings(scorer: embedding.Embedding, film: ClipRow, num_gpus: int) -> Any:
    """Return a clip's embedding by the scorer in this process."""
    scored = score_clip(film, Path(film.video.path), [scorer])
    return np.frombuffer(scored.blobs["embedding"], np.float16)


def added_scores(film: ClipRow, scorer: embedding.Embedding, bench: Bench, name: str) -> Row:
    """Score a clip in the child process of the stage that reserves a GPU, against this process."""
    start_s = bench.now_s()
    stage = AddScores([scorer], Decoder(), has_gpu=True)
    with closing(stage._sandbox):
        (scored,) = clips_from_table(stage(clips_to_table([film])))
    seconds = bench.now_s() - start_s
    assert not scored.failure, scored.failure
    found = np.frombuffer(scored.blobs["embedding"], np.float16)
    gap = difference(found, clip_embeddings(scorer, film, 1))
    problem = None if gap < 1e-2 else f"differs by {gap:.2g} from this process"
    return Row(name, forward_s=seconds, note=f"differs by {gap:.2g}", problem=problem)


def text_embeddings(encoders: Path, num_gpus: int) -> Any:
    """Return the tokens of a prompt as the embedding stage writes them."""
    config = Prompts(
        encoder=str(encoders),
        num_tokens=600,  # of which the template's are most
        stored_dtype="float32",
        num_gpus_per_actor=num_gpus,
    )
    table = pa.Table.from_pylist([{"key": "k", "prompt": PROMPT}], schema=PROMPT_SCHEMA)
    with TemporaryDirectory() as name:
        root = Path(name)
        Embed(EmbedJob(config, prompts_fingerprint(config), root))(table)
        entry = committed_texts(root)["k"]
        with open_text_shard(root, entry) as file:
            return read_text(file, entry).tokens


def captions(model: Path, num_gpus: int) -> Any:
    """Return the characters that a vision-language model writes about two clips."""
    config = LocalModel(model=model, compute_dtype="float32", num_gpus_per_actor=num_gpus)
    clips = [[*render_clip(seed, num_frames=2)] for seed in range(2)]
    answers = config.open(Task(PROMPT, 12), None).write(clips)
    assert all(answer.text for answer in answers), answers
    return [ord(letter) for answer in answers for letter in answer.text]


def retrieved(clip: Path, num_gpus: int) -> Any:
    """Return the first frame that is nearest to a prompt, out of three."""
    with TemporaryDirectory() as name:
        for seed in range(3):
            picture = Image.fromarray(render_clip(seed, num_frames=1)[0])
            picture.save(Path(name) / f"{seed}.png")
        return first_frame(PriorConfig(index=Path(name), clip=clip))


def painted(pipeline: Path, num_gpus: int) -> Any:
    """Return the first frame that a text-to-image pipeline paints."""
    return first_frame(PriorConfig(text_to_image=str(pipeline), image_steps=2))


def first_frame(config: PriorConfig) -> Any:
    """Return the picture that begins the video of a prompt."""
    model = find_pretrained("student-4step")
    with TemporaryDirectory() as name, ImagePriors(config, model) as priors:
        order = Order(Path(), Path(name) / "video.mp4", prompt=PROMPT)
        return read_picture(priors.complete(order).image)


def write_latents(root: Path, film: ClipRow) -> DataConfig:
    """Write the ledger and the latents of a film, encoded by the processor; return the recipe."""
    source = Folder(path=str(root), license="CC0", mixture="portrait")
    bucket = Bucket(num_frames=9, height=32, width=32)
    config = DataConfig(sources=(source,), bucket=bucket, windows_per_clip=1, flip=False)
    Ledger(root / "ledger").append([film])
    stage = Encode(EncodeJob(config, VAE, fingerprint_of(VAE), root / "latents"))
    with closing(stage._sandbox):
        (report,) = stage(clips_to_table([film])).to_pylist()
    assert not report["failure"], report
    return config


def reconstructed(config: DataConfig, root: Path, num_gpus: int) -> Any:
    """Return how closely the decoded latents are the film, in dB."""
    (row,) = reconstruct([config], VAE, root)
    assert row.psnr_db is not None, row.failure
    return row.psnr_db


def cuts(film: Path, num_gpus: int) -> Any:
    """Return where TransNetV2 finds the transition; its package makes all of torch deterministic,
    which is undone."""
    try:
        meter = transnet.TransNetMeter()
        for frame in decode(film):
            meter.update(Frame(frame))
        found = meter.cuts()
        assert found, "there is one from the first person to the second"
        return [(cut.start, cut.stop) for cut in found]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


def page_timer(bench: Bench) -> Row:
    """Return whether the page's timer counts the seconds of a network."""
    network = nn.Linear(8, 8, device=bench.device)
    timer = StepTimer(network)
    network(torch.zeros(1, 8, device=bench.device))
    problem = None if timer.total_s > 0 else "it counts no time"
    return Row("timer of the web page", forward_s=timer.total_s, problem=problem)


def full_memory(bench: Bench, name: str) -> Row:
    """Allocate twice the memory of the GPU, and read the explanation."""
    try:
        with explained_memory():
            size = 2 * torch.cuda.get_device_properties(bench.device).total_memory
            torch.empty(size, dtype=torch.uint8, device=bench.device)
    except GpuMemoryError as error:
        is_whole = "GiB at the peak" in str(error) and "num_micro_batches" in str(error)
        return Row(name, note=str(error), problem=None if is_whole else str(error))
    return Row(name, problem="twice the memory of the GPU was allocated")
