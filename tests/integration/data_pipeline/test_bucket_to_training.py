"""The walk of docs/data.md, by its own files and commands: an empty bucket, then a first cycle."""

import csv
import gzip
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from magicdistill.data_pipeline.io.object_stores import filesystem
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.platform.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from tests.s3_server import Server

ROOT = Path(__file__).parents[3]
WALK = (ROOT / "docs" / "data.md").read_text().partition("### The report")[0]
RUNS = "/mnt/shared/runs"
SMALL = """
extends: portrait-tiny-smoke
data: {num_actors: 1, videos_per_block: 4}
schedule: {num_cycles: 1, sample_every: null}
method: {warmup_cycles: 0}
evaluation: null
"""
"""What stands for the recipes of the 13B model."""
NUM_FILMS = 5
HEADER = (
    "videoID", "url", "timestamp", "caption", "clarity_score", "aesthetic_score", "motion_score",
    "video_training_suitability_score",
)  # fmt: skip


@pytest.fixture
def walk(s3: "Server", tmp_path: Path) -> Path:
    """A folder with the recipes of the page, and the bucket after its first step."""
    store = filesystem()
    store.mkdir("my-clips")
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(HEADER)
    for seed in range(NUM_FILMS):
        write_mp4(tmp_path / "film.mp4", render_clip(seed, num_frames=60), 24)
        store.put_file(str(tmp_path / "film.mp4"), f"my-clips/koala/videos/-film{seed}.mp4")
        for index, span in enumerate(("['0:00:00.0', '0:00:01.2']", "(1.25, 2.4)")):
            row = [f"-film{seed}_{index}", "u", span, "A face,\ntalking.", 0.9, 5, 9, "nan"]
            rows.writerow(row)
    rows.writerow(["gone_0", "u", "[0.0, 1.0]", "A cat.", 0.9, 5, 9, 4])
    store.pipe("my-clips/koala/part-0.csv", gzip.compress(text.getvalue().encode()))
    for name, recipe in re.findall(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```$", WALK, re.M | re.S):
        small = re.sub(r"nightly|magic141-4step-40xh100", "small.yaml", recipe)
        (tmp_path / name).write_text(small)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def run(walk: Path, command: str) -> str:
    """Run a command that stands on the page, in the folder of the walk."""
    assert command in WALK.splitlines()
    _, script, *arguments = shlex.split(command.replace(RUNS, str(walk / "runs")))
    job = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=walk,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    return job.stdout


@pytest.mark.timeout(900)
@pytest.mark.long
def test_the_walk_leads_from_an_empty_bucket_to_a_first_cycle(walk: Path, s3: "Server") -> None:
    curated = run(walk, f"python jobs/curate.py --recipe koala-curate.yaml --runs {RUNS}")
    assert "rows of koala-36m that cannot be used: missing file 1" in curated
    latents = walk / "runs" / "data" / "latents"
    encoded = {path: path.stat().st_mtime_ns for path in latents.rglob("*.parquet")}
    assert encoded
    s3.num_downloads = 0
    trained = run(walk, f"python jobs/distill.py --recipe koala-train.yaml --runs {RUNS}")
    after = {path: path.stat().st_mtime_ns for path in latents.rglob("*.parquet")}
    assert encoded.items() <= after.items() and s3.num_downloads <= 4  # of the manifest
    run_folder = RunDirectory.open(trained.partition("] run ")[2].partition("\n")[0])
    assert [row["step"] for row in run_folder.metrics()] == [1]
