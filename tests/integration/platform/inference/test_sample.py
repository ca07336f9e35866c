"""Videos by the job: one that is stopped, and many over a local Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magicdistill.data_pipeline.media.video import probe
from magicdistill.platform.export.pretrained_model import ASSETS

ROOT = Path(__file__).parents[4]
FACE = ASSETS / "portrait-tiny" / "face.png"


def sample(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "sample.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_stopped_leaves_no_temporary_file(tmp_path: Path, stop) -> None:
    """And imports no text encoders on its way there, which the shipped models do not have."""
    out = tmp_path / "long.mp4"
    flags = ["--image", str(FACE), "--out", str(out), "--seconds", "3600"]
    command = [sys.executable, str(ROOT / "jobs" / "sample.py"), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
    with (
        (tmp_path / "imports").open("w") as imports,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=imports
        ) as job,
    ):
        end_s = time.monotonic() + 120
        while not list(tmp_path.glob(".long.mp4.*.tmp")):
            assert job.poll() is None and time.monotonic() < end_s
            time.sleep(0.1)
        job.send_signal(stop)
        assert job.wait(60) == 143 if stop == signal.SIGTERM else job.wait(60) != 0
    assert [path.name for path in tmp_path.iterdir()] == ["imports"]
    lines = (tmp_path / "imports").read_text().splitlines()
    found = {line.rpartition("|")[2].strip() for line in lines}
    assert {"torch", "diffusers.models.attention_processor"} <= found
    encoders = "magicdistill.models.networks.conditioning.prompt_encoder"
    others = {"transformers.models.clip.modeling_clip", "pyarrow.parquet", "ray"}
    assert not found & {encoders, *others}


MEASURE = """
import resource, sys
from pathlib import Path
from magicdistill.platform.export.pretrained_model import find_pretrained
from magicdistill.platform.inference.orders import Order
from magicdistill.platform.inference.sample_video import VideoSampler
image, out, seconds = sys.argv[1:]
order = Order(Path(image), Path(out), seconds=float(seconds))
VideoSampler(find_pretrained("student-4step")).make(order)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    short, long = (
        int(
            subprocess.run(
                [sys.executable, "-c", MEASURE, str(FACE), str(tmp_path / "v.mp4"), str(seconds)],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            ).stdout
        )
        for seconds in (10, 60)
    )
    assert long < 1.05 * short


@pytest.mark.long
def test_a_list_gives_the_same_videos_over_any_number_of_actors(tmp_path: Path) -> None:
    """And what is there is kept, what is missing made, and what cannot be made is named."""
    lines = [{"image": str(FACE)}, {"image": str(FACE), "seconds": 1}, {"image": "none.png"}]
    inputs = tmp_path / "list.jsonl"
    inputs.write_text("\n".join(map(json.dumps, lines)))
    two = sample("--inputs", inputs, "--out", tmp_path / "two", "--actors", 2)
    assert two.returncode == 1
    assert two.stderr.splitlines()[-1].startswith("0002-none.mp4: no image")
    made = sorted((tmp_path / "two").glob("*.mp4"))
    assert [probe(path).num_frames for path in made] == [17, 24]
    contents = [path.read_bytes() for path in made]
    times = made[0].stat().st_mtime_ns

    made[1].unlink()
    inputs.write_text("\n".join(map(json.dumps, lines[:2])))
    again = sample("--inputs", inputs, "--out", tmp_path / "two", "--actors", 1)
    assert again.returncode == 0, again.stderr
    assert "2 videos, 1 of them made already" in again.stdout
    assert made[0].stat().st_mtime_ns == times
    assert [path.read_bytes() for path in made] == contents
