"""The placement of the large recipe on simulated nodes, one of which is lost on the way."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[4]
RAY = Path(sys.executable).with_name("ray")
NODES = int(os.environ.get("REHEARSAL_NODES", "2"))
GPUS = int(os.environ.get("REHEARSAL_GPUS", "2"))
"""Of a node: the recipe has 8 on each of 5 nodes."""
CYCLES = 4
RECIPE = f"""
extends: magic141-4step-40xh100
model: {{preset: nano, vae: assets/portrait-tiny/vae, teacher: null}}
data:
  sources: [{{kind: portrait-world, num_clips: 4}}]
  bucket: {{num_frames: 17, height: 64, width: 64, fps: 24}}
  null_text: {{num_tokens: 4, token_dim: 64, pooled_dim: 64}}
  encoding: {{compute_dtype: float32, num_gpus_per_actor: 0}}
  measures: {{motion_short_side: 64, motion_fps: 8}}
  policy: {{min_short_side: 64, min_long_side: 64, min_motion_px: 0.02, max_motion_px: 12}}
method: {{num_fake_updates: 1, lora: {{rank: 2}}}}
schedule: {{num_cycles: {CYCLES}, batch_size: {NODES}, checkpoint_every: 1}}
kernels: {{attention: sdpa}}
evaluation: null
cluster:
  rehearsal: true
  num_workers: {NODES * GPUS}
  sequence_parallel: {GPUS}
  threads_per_worker: 1
"""


class Machines:
    """A head without CPUs, as in cluster.yaml, and nodes that say they have GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[psutil.Popen] = []
        programs = os.pathsep.join([str(RAY.parent), os.environ["PATH"]])
        self.environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PATH": programs}
        self.environment.pop("RAY_ADDRESS", None)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        port = self.address.partition(":")[2]
        self._start("--head", "--num-cpus", "0", "--port", port, "--temp-dir", str(folder))

    def add_node(self) -> psutil.Popen:
        """Start a node as large as the recipe's, with CPUs for curation beside the workers."""
        size = ["--num-cpus", str(GPUS + 1), "--num-gpus", str(GPUS)]
        return self._start("--address", self.address, *size)

    def lose(self, node: psutil.Popen) -> None:
        """Kill everything on a node at once, as a power cut does."""
        for process in (*node.children(recursive=True), node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def _start(self, *arguments: str) -> psutil.Popen:
        log = self.folder / f"node-{len(self.processes)}.log"
        with log.open("w") as file:
            process = psutil.Popen(
                [str(RAY), "start", "--block", *arguments],
                env=self.environment,
                stdout=file,
                stderr=file,
            )
        self.processes.append(process)
        while "Ray runtime started" not in log.read_text():  # two at once race for their ports
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        return process


@pytest.fixture
def machines() -> Iterator[Machines]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path has no room for pytest's
    machines = Machines(folder)
    try:
        yield machines
    finally:
        for process in reversed(machines.processes):
            if process.poll() is None:
                machines.lose(process)
        shutil.rmtree(folder, ignore_errors=True)  # Ray's last processes may still write


def wait_for(run_root: Path, line: str, job: psutil.Popen) -> RunDirectory:
    """Return the job's run as soon as it has said the line."""
    while job.poll() is None:
        for progress in run_root.glob("*/progress.log"):
            if line in progress.read_text():
                return RunDirectory(progress.parent)
        time.sleep(0.5)
    raise AssertionError(f"the job ended before it said {line!r}:\n{job.communicate()[0]}")


def groups(run: RunDirectory) -> list[tuple[int, int, str]]:
    """Return first rank, last rank and node, in the order in which they were told."""
    said = run.progress_path.read_text()
    found = re.findall(r"ranks (\d+) to (\d+) are on node \S+ \((\w+)\)", said)
    return [(int(first), int(last), node) for first, last, node in found]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_placement_survives_the_loss_of_a_node(machines: Machines, tmp_path: Path) -> None:
    nodes = [machines.add_node() for _ in range(NODES)]
    recipe = tmp_path / "rehearsal.yaml"
    recipe.write_text(RECIPE)
    assert load_recipe(recipe).cluster.gpus_per_worker == 1
    command = ["jobs/distill.py", "--recipe", str(recipe), "--runs", str(tmp_path / "runs")]
    job = psutil.Popen(
        [sys.executable, *command, "--cluster.address", machines.address],
        cwd=ROOT,
        env=machines.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    machines.processes.append(job)
    run = wait_for(tmp_path / "runs", f"cycle 2/{CYCLES}", job)
    machines.lose(nodes[-1])
    machines.add_node()
    output, _ = job.communicate()
    assert job.returncode == 0, output

    before, after = groups(run)[:NODES], groups(run)[NODES:]
    whole_nodes = [(node * GPUS, (node + 1) * GPUS - 1) for node in range(NODES)]
    for found in (before, after):
        assert [ranks for *ranks, _ in found] == [list(ranks) for ranks in whole_nodes]
    assert len({node for *_, node in before} & {node for *_, node in after}) == NODES - 1
    assert "share their samples over the network" not in output
    assert re.search(r"continuing after cycle [1-4]", output)
    assert [row["step"] for row in run.metrics()] == list(range(1, CYCLES + 1))
    assert (run.path / "model" / "config.json").is_file()
