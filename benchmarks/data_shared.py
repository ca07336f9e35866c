"""What the parts of `data.py` share: clips, their config, and parts in processes of their own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.sources.portrait_world.world import write_clips
from magicdistill.platform.config.recipe import load_recipe

NUM_PROCESSES = 2
SAMPLED_EVERY_S = 0.2
CLIP_FRAMES, CLIP_SIZE = 51, 128

Row = dict[str, Any]
Part = Callable[[Path], Row]


def make_clips(folder: Path, count: int) -> Path:
    """Render talking portraits, once."""
    write_clips(folder, range(count), CLIP_FRAMES, CLIP_SIZE)
    return folder


def bench_config(clips: Path) -> DataConfig:
    """Return the data of portrait-tiny with a folder as the source."""
    values = load_recipe("portrait-tiny").data.model_dump()
    source = {"kind": "folder", "path": str(clips), "license": "none", "mixture": "portrait"}
    return DataConfig.model_validate(values | {"sources": [source], "num_actors": NUM_PROCESSES})


def quiet(stage: str, done: int, total: int) -> None:
    """Show no progress."""


def run_part(file: str, part: str, folder: Path, config: str = "") -> Row:
    """Run a part of a file in a process of its own; return its result, seconds and peak memory."""
    (folder / "part.json").write_text(config)
    start_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, file, part, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start_s
    return json.loads(done.stdout.splitlines()[-1]) | {"s": seconds}


@contextmanager
def cpu_counted() -> Iterator[Callable[[], float]]:
    """Yield what tells the CPU seconds of all processes that the body has started.

    They are known by a mark in their environment, so that daemons count as well. What a process
    does after its last sample is left out.
    """
    mark, name = uuid4().hex, "MAGICDISTILL_BENCHMARK"
    seconds: dict[tuple[int, float], float] = {}
    others: set[tuple[int, float]] = set()
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLED_EVERY_S):
            for process in psutil.process_iter(["pid", "create_time"]):
                key = (process.pid, process.info["create_time"])
                if key in others:
                    continue
                try:
                    if key not in seconds and process.environ().get(name) != mark:
                        others.add(key)
                        continue
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                seconds[key] = times.user + times.system

    sampler = threading.Thread(target=sample, daemon=True)
    os.environ[name] = mark
    sampler.start()
    try:
        yield lambda: sum(seconds.values())
    finally:
        del os.environ[name]
        ended.set()
        sampler.join()


def be_part(parts: Mapping[str, Part]) -> None:
    """Be the process that `run_part` started."""
    found = parts[sys.argv[1]](Path(sys.argv[2]))
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak, too
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps(found | {"peak MiB": int(peak_kib) / 1024}))
