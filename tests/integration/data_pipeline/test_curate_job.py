"""jobs/curate.py as a user and a crash see it, in processes of its own."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentCache, read_shard
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.maintenance.verification import verify
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]
NUM_CLIPS = 6
RECIPE = """
extends: portrait-tiny
data:
  sources:
    - {{kind: folder, path: {folder}, license: CC0, mixture: portrait}}
  windows_per_clip: 1
  flip: false
  decoder: {{timeout_s: 4, num_attempts: 2}}
  encoding: {{rows_per_shard: 2}}
  num_actors: 1
  videos_per_block: 2
cluster: {{dashboard: false}}
evaluation: null
"""


def write_endless(path: Path) -> None:
    """Write a small file of which only the last of 999 large frames is shown."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 4096
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((6144, 4096), np.uint8), "yuv420p")
        (packet,) = [*stream.encode(picture), *stream.encode()]
        content = bytes(packet)
        for number in range(999):
            again = av.Packet(content)
            again.stream, again.time_base = stream, Fraction(1, 24)
            again.pts = again.dts = number - 998
            again.is_keyframe = not number  # so that all are decoded for the last one
            output.mux(again)


class Place:
    """A folder of clips, one of which takes the decoder too long, and a recipe for it."""

    def __init__(self, folder: Path) -> None:
        clips = folder / "clips"
        clips.mkdir()
        for seed in range(NUM_CLIPS):
            write_mp4(clips / f"{seed}.mp4", render_clip(seed), 24)
        write_endless(clips / "endless.mp4")
        self.runs, self.data = folder / "runs", folder / "runs" / "data"
        self.shards = self.data / "latents" / "shards"
        self.recipe = folder / "mine.yaml"
        self.recipe.write_text(RECIPE.format(folder=clips))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        program = [sys.executable, str(ROOT / "jobs" / "curate.py"), "--recipe", str(self.recipe)]
        return subprocess.Popen(
            [*program, "--runs", str(self.runs), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        job = self.start(*arguments)
        output, _ = job.communicate()
        assert job.returncode == 0, output
        return output

    def committed(self) -> dict[Path, int]:
        """Return when each committed file of scores and latents was written."""
        paths = [*self.data.glob("ledger/scores/*.parquet"), *self.shards.glob("*.index.parquet")]
        return {path: path.stat().st_mtime_ns for path in paths}

    def num_scored(self) -> int:
        """Return the number of videos in the ledger."""
        return sum(pq.read_metadata(p).num_rows for p in self.data.glob("ledger/scores/*.parquet"))

    def num_shards(self) -> int:
        """Return the number of committed shards."""
        return len(list(self.shards.glob("*.index.parquet")))


def kill_when(job: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """Kill a job as soon as a point is reached, and wait for what it started to follow it."""
    while not reached():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)
    started = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.communicate()
    _, alive = psutil.wait_procs(started, timeout=60)
    for process in alive:
        process.kill()


@pytest.mark.parametrize(
    "points", [("encode",), ("score", "between", "encode")], ids=lambda points: "-".join(points)
)
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kill_9_loses_nothing_and_nothing_is_scored_twice(points: tuple[str, ...], tmp_path: Path):
    place = Place(tmp_path)
    reached = {
        "score": lambda: place.num_scored() >= 2,
        "between": lambda: place.num_scored() == NUM_CLIPS + 1,
        "encode": lambda: place.num_shards() >= 1,
    }
    before: dict[Path, int] = {}
    for point in points:
        kill_when(place.start(), reached[point])
        after = place.committed()
        assert before.items() <= after.items()
        before = after
    assert 1 <= place.num_shards() < NUM_CLIPS / 2

    output = place.run()
    assert before.items() <= place.committed().items()
    assert "quarantined folder/clips/endless.mp4: timed out after 4 s (2 attempts)" in output
    clips = Counter(id_ for part in Ledger(place.data / "ledger").parts() for id_ in ids(part))
    assert len(clips) == clips.total() == NUM_CLIPS + 1
    shards = [path for path in place.shards.iterdir() if ".index" not in path.name]
    keys = Counter(row.facts.key for shard in shards for row in read_shard(shard))
    assert len(keys) == keys.total() == NUM_CLIPS
    (version,) = (place.data / "latents" / "versions").iterdir()
    assert len(LatentCache(version)) == NUM_CLIPS
    assert not list(verify(place.data, lambda stage, done, total: None))
    check_tracked(place, version.name)

    output = place.run("--data.policy.min_motion_px", "4.0", "--stage", "decide")
    assert "Ray not started" in output and "starting Ray" not in output
    assert before.items() <= place.committed().items()


def ids(part: AnyPath) -> list[str]:
    return pq.read_table(str(part), columns=["clip_id"])["clip_id"].to_pylist()


def check_tracked(place: Place, version: str) -> None:
    """Find versions, counts and the page about the curation in MLflow."""
    (path,) = place.runs.glob("mine-curation-*")
    run = RunDirectory(path)
    assert not (place.runs / "latest").exists()
    client = MlflowClient(f"sqlite:///{place.runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("magicdistill")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id], "tags.purpose = 'data'")
    assert tracked.data.params["lineage.training.latents"] == version
    assert tracked.data.params["lineage.training.policy"] == run.recipe().data.policy.version
    assert tracked.data.params["lineage.training.mixture"] == f"portrait {NUM_CLIPS}"
    assert tracked.data.metrics["curation/training/accepted"] == NUM_CLIPS
    assert tracked.data.metrics["curation/training/failed"] == 1
    assert "curation.html" in {file.path for file in client.list_artifacts(tracked.info.run_id)}
