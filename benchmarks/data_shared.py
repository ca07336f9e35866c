"""What the parts of `data.py` share: clips, their config, and parts in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.sources.portrait_world.world import write_clips
from magicdistill.platform.config.recipe import load_recipe

NUM_PROCESSES = 2
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


def be_part(parts: Mapping[str, Part]) -> None:
    """Be the process that `run_part` started."""
    found = parts[sys.argv[1]](Path(sys.argv[2]))
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak, too
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps(found | {"peak MiB": int(peak_kib) / 1024}))
