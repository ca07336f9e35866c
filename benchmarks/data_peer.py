"""Scoring against Data-Juicer's Ray executor, on what both do: probe, size, duration, motion."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from data_shared import NUM_PROCESSES, Row, bench_config, cpu_counted, make_clips, run_part

from magicdistill.data_pipeline.config import Bucket, Policy
from magicdistill.data_pipeline.latents.windows import fit
from magicdistill.data_pipeline.media.video import decode, write_frames
from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.sources.package_clips import find_clips

SCORING = str(Path(__file__).with_name("data_scoring.py"))
FILM = Bucket(num_frames=121, height=720, width=1280, fps=24)
FILMS = ("bigbuckbunny.mp4", "bikes.mp4")
STILL_EVERY = 8
"""So many films have one that stands still, which both sides have to reject."""
MIN_MOTION_PX = 0.02
"""That of portrait-tiny."""
CLIPS_PER_FILM = 10
PARTS = ("decoding", "flow", "hash", "rest")
"""Where the time of a clip goes in one process."""
MORE = 3
"""So many times as many films are filtered the second time."""


def against_data_juicer(folder: Path, count: int, environment: Path | None) -> list[Row]:
    """Filter by size, duration and motion from a cold start, decisions included.

    Once tiny clips, where starting counts, and 5 s of 720p, where decoding does; each is measured
    at the same rate and size by both. The films are filtered in two numbers: what more of them take
    is what a further one takes, without the start.
    """
    if environment is None:
        return []
    num_films = max(2, count // CLIPS_PER_FILM)
    tiny = compared(make_clips(folder / "clips", count), folder / "tiny", environment, 64, 8)
    films = make_films(folder / "films", MORE * num_films)
    some = folder / "some-films"
    some.mkdir()
    for film in sorted(films.iterdir())[:num_films]:
        os.link(film, some / film.name)
    few = compared(some, folder / "few", environment, 240, 2)
    many = compared(films, folder / "many", environment, 240, 2)
    alone = run_part(SCORING, "shares", folder / "few", own_config(some, 240, 2))
    name = "Data-Juicer's seconds / ours, cold start"
    return [
        {"name": f"filter {count} clips of 128 x 128: {name}"} | tiny,
        {"name": f"filter {num_films} clips of 5 s at 720p: {name}"} | few,
        {"name": f"filter {MORE * num_films} clips of 5 s at 720p: {name}"} | many,
        further(few, many, (MORE - 1) * num_films, alone),
    ]


def further(few: Row, many: Row, count: int, alone: Row) -> Row:
    """Return the CPU seconds that each of `count` further films takes on both sides.

    `alone` says what a film takes in one process without Ray, and where its time goes.
    """
    ours, theirs = ((many[key] - few[key]) / count for key in ("ours CPU s", "their CPU s"))
    film_s = FILM.num_frames / FILM.fps
    return {
        "name": "a further clip of 5 s at 720p: Data-Juicer's CPU seconds / ours",
        "ratio": theirs / ours,
        "ours CPU s": ours,
        "their CPU s": theirs,
        "our hours of video per core-day": 24 * film_s / ours,
        "their hours of video per core-day": 24 * film_s / theirs,
        "our CPU s without Ray": alone["CPU s"],
        **{f"share of {part}": alone[part] * alone["CPU s"] / ours for part in PARTS},
        "share of Ray": 1 - alone["CPU s"] / ours,
        "wanted": ">= 3",
    }


def make_films(folder: Path, count: int) -> Path:
    """Write 5 s of 720p from the package videos, each from another frame on."""
    folder.mkdir(exist_ok=True)
    paths = {path.name: path for path, _ in find_clips()}
    for number in range(count):
        film = paths[FILMS[number % len(FILMS)]]
        still = number % STILL_EVERY == STILL_EVERY - 1
        write_frames(folder / f"{number:06d}.mp4", film_frames(film, number, still), FILM.fps)
    return folder


def film_frames(path: Path, first: int, still: bool) -> Iterator[Array]:
    """Yield frames of a film from one on, back and forth; or the same one all the time."""
    frames = list(decode(path))
    there_and_back = frames + frames[-2:0:-1]
    for index in np.arange(first, first + FILM.num_frames) % len(there_and_back):
        yield fit(frames[0] if still else there_and_back[index], FILM)


def compared(
    clips: Path, folder: Path, environment: Path, short_side: int, sampling_fps: int
) -> Row:
    """Return seconds of both sides and how many clips they kept.

    Raises:
        RuntimeError: if they kept different numbers: they did not do the same.
    """
    folder.mkdir()
    with cpu_counted() as cpu_s:
        found = run_part(SCORING, "score", folder, own_config(clips, short_side, sampling_fps))
    our_cpu_s = cpu_s()
    start_s = time.perf_counter()
    with cpu_counted() as cpu_s:
        num_kept = run_data_juicer(clips, folder, environment, short_side, sampling_fps)
    their_s = time.perf_counter() - start_s
    if num_kept != found["kept"]:
        raise RuntimeError(f"Data-Juicer kept {num_kept} clips and we {found['kept']}")
    return {
        "ratio": their_s / found["s"],
        "ours s": found["s"],
        "Data-Juicer s": their_s,
        "ours CPU s": our_cpu_s,
        "their CPU s": cpu_s(),
        "kept by both": num_kept,
        "wanted": "> 1",
    }


def own_config(clips: Path, short_side: int, sampling_fps: int) -> str:
    """Return our settings as JSON: as there, no shots are looked for and no motion is too fast."""
    config = bench_config(clips)
    policy = Policy.model_validate(
        config.policy.model_dump() | {"limits": {"all": {"motion.px": {"min": MIN_MOTION_PX}}}}
    )
    taken = {"shots": "none", "motion_short_side": short_side, "motion_fps": sampling_fps}
    measures = config.measures.model_copy(update=taken)
    return config.model_copy(update={"measures": measures, "policy": policy}).model_dump_json()


def run_data_juicer(
    clips: Path, folder: Path, environment: Path, short_side: int, sampling_fps: int
) -> int:
    """Run its command line; return how many clips it kept.

    Raises:
        RuntimeError: if it failed, with its output.
    """
    manifest = folder / "juicer.jsonl"
    lines = [json.dumps({"text": "", "videos": [str(clip)]}) for clip in sorted(clips.iterdir())]
    manifest.write_text("\n".join(lines) + "\n")
    motion = {"min_score": MIN_MOTION_PX, "sampling_fps": sampling_fps, "size": short_side}
    kept = folder / "juicer" / "kept.jsonl"
    recipe = {
        "project_name": "peer",
        "executor_type": "ray",
        "ray_address": "local",
        "np": NUM_PROCESSES,
        "dataset_path": str(manifest),
        "export_path": str(kept),
        "process": [
            {"video_resolution_filter": {"min_width": 64, "min_height": 64}},
            {"video_duration_filter": {"min_duration": 0.5, "video_backend": "av"}},
            {"video_motion_score_filter": motion},
        ],
    }
    path = folder / "juicer.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [environment.absolute() / "bin" / "dj-process", "--config", path],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        output = done.stdout[-2000:] + done.stderr[-4000:]
        raise RuntimeError(f"Data-Juicer failed:\n{output}")
    return sum(len(part.read_text().splitlines()) for part in kept.glob("*.json"))
