"""Benchmarks: interleaved timing, and results with what they were made with."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from magicdistill.data_pipeline.io.whole_files import write_text

PACKAGES = ("torch", "diffusers", "peft", "deepspeed")


class Seconds(NamedTuple):
    """What one call took."""

    cpu: float
    """Of all threads of the process: hardly moved by what else the machine does."""
    wall: float


def timed(call: Callable[[], object]) -> Seconds:
    """Call once."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """Time the calls in turn, again and again, so that load falls on all alike.

    Returns medians. The first round warms up and does not count.
    """
    found: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            found[name].append(timed(call))
    return {name: median(rounds[1:]) for name, rounds in found.items()}


def median(rounds: list[Seconds]) -> Seconds:
    """Return the medians of both clocks."""
    return Seconds(*(statistics.median(clock) for clock in zip(*rounds, strict=True)))


def surroundings() -> dict[str, Any]:
    """Return command, versions and machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["python", *sys.argv]),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "machine": {"cpu": _cpu_model(), "cores": psutil.cpu_count(), "gpu": gpu},
    }


def write_result(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result as JSON, with what it was made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(surroundings() | dict(values), indent=2) + "\n")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
