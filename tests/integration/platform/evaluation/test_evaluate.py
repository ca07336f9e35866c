"""Scoring a generator: table, parts, protocols, and going on where an evaluation stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[4]
MODEL = ROOT / "assets" / "portrait-tiny" / "student-4step"
FACE = ROOT / "assets" / "portrait-tiny" / "face.png"
PROTOCOLS = ROOT / "jobs" / "recipes" / "protocols"
SUBJECT = ["i2v_subject", "dynamic_degree", "temporal_flickering"]


def command(folder: Path, *more: str) -> list[str]:
    start = [sys.executable, "jobs/evaluate.py", "--recipe", "portrait-tiny-smoke"]
    return [*start, "--runs", str(folder), *more]


def evaluate(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *more), cwd=ROOT, capture_output=True, text=True, check=False
    )


def stop_after_parts(folder: Path, count: int, *more: str) -> None:
    """Run the job until it has kept so many parts, then end it."""
    process = subprocess.Popen(command(folder, *more), cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(parts(folder)) < count and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("evaluations/*/parts/*.npz"))


def scores(folder: Path, protocol: str) -> dict[str, Any]:
    (path,) = folder.glob(f"evaluations/*/{protocol}/scores.json")
    return json.loads(path.read_text())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_scores_do_not_depend_on_where_an_evaluation_stopped(tmp_path: Path) -> None:
    stop_after_parts(tmp_path, 2, "--model", str(MODEL))
    first = evaluate(tmp_path, "--model", str(MODEL))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "parts: 0 kept" not in first.stdout
    assert "absent fid: no folder of metric weights was given" in first.stdout
    table = scores(tmp_path, "portrait-tiny")
    assert [row["method"] for row in table["rows"]] == ["real", "teacher", "euler", "student"]
    real, *generated = table["rows"]
    assert real["metrics"]["proxy_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert real["metrics"]["dynamic_degree_proxy"] == 1
    for row in generated:
        assert row["metrics"]["proxy_frechet_distance"] > 1e-4
        assert 0.5 < row["metrics"]["temporal_flickering"] < 1
        assert row["nfe"] == 4
        assert "fid" in row["absent"] and "average" in row["absent"]
    assert len(list(tmp_path.glob("evaluations/references/*.npz"))) == 1

    kept = parts(tmp_path)
    assert len(kept) == 4
    for part in kept:
        part.unlink()
    again = evaluate(tmp_path, "--model", str(MODEL))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "parts: 0 kept, 3 to measure" in again.stdout  # the real clips are not measured again
    assert scores(tmp_path, "portrait-tiny") == table


@pytest.fixture
def vfhq(tmp_path: Path) -> Path:
    """A replica of VFHQ: two clips with their annotations, one annotation without its clip."""
    store, annotations = tmp_path / "clips", tmp_path / "annotations"
    store.mkdir()
    annotations.mkdir()
    with Image.open(FACE) as image:
        face = np.asarray(image.convert("RGB").resize((72, 72)))
    for number in range(3):
        name = f"Clip+video{number}+P0+C0+F100-130"
        text = "VIDEO x\nH 720\nW 1280\nFPS 24\nCROP 100 100 500 500\n"
        (annotations / f"{name}.txt").write_text(text)
        shifts = (np.roll(face, frame // 2 * (number + 1), axis=1) for frame in range(30))
        if number < 2:
            write_mp4(store / f"{name}.mp4", np.stack(list(shifts)), 24)
    path = tmp_path / "tiny-vfhq.yaml"
    path.write_text(
        f"extends: {PROTOCOLS / 'vfhq.yaml'}\nname: vfhq\ncolumns: [fid, proxy_frechet_distance]\n"
        f"data:\n  sources: [{{kind: vfhq, path: {annotations}, store: {{path: {store}}}}}]\n"
        "  bucket: {num_frames: 17, height: 64, width: 64}\n"
        "  policy: {min_short_side: 16, min_long_side: 16}\n"
    )
    return path


@pytest.mark.long
@pytest.mark.timeout(600)
def test_real_clips_are_compared_with_their_own_frames(tmp_path: Path, vfhq: Path) -> None:
    done = evaluate(tmp_path, "--model", str(MODEL), "--protocol", str(vfhq))
    assert done.returncode == 0, done.stdout + done.stderr
    table = scores(tmp_path, "vfhq")
    assert table["facts"]["inputs"] == "2 of 100 clips"
    assert table["facts"]["compared with"] == "originals"
    assert len(table["papers"]) == 7 and "paper: 002, table 4" in done.stdout
    real, *generated = (row["metrics"]["proxy_frechet_distance"] for row in table["rows"])
    assert real == pytest.approx(0, abs=1e-6) and min(generated) > 1e-3
    assert "missing file" in done.stdout


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A replica of VBench-I2V: a subject, a background, and a pair for camera motion."""
    folder = tmp_path / "16-9"
    folder.mkdir()
    with Image.open(FACE) as image:
        image.convert("RGB").resize((96, 72)).save(folder / "a person talks.jpg")
        image.convert("RGB").resize((96, 72)).rotate(180).save(folder / "a wall.jpg")
    rows = [
        ("a person talks", "a person talks.jpg", SUBJECT),
        ("a person talks, camera pans left", "a person talks.jpg", ["camera_motion"]),
        ("a wall", "a wall.jpg", ["aesthetic_quality", "imaging_quality"]),
    ]
    pairs = [{"prompt_en": p, "image_name": i, "dimension": d} for p, i, d in rows]
    (tmp_path / "vbench2_i2v_full_info.json").write_text(json.dumps(pairs))
    path = tmp_path / "tiny-vbench.yaml"
    path.write_text(
        f"extends: {PROTOCOLS / 'i2v-vbench.yaml'}\nnum_samples: 2\nnum_frames: 17\ncolumns: []\n"
        "data:\n"
        f"  sources: [{{kind: vbench-i2v, manifest: {tmp_path}/vbench2_i2v_full_info.json, "
        f"images: {folder}}}]\n"
        "  bucket: {num_frames: 1, height: 64, width: 64}\n"
        "  policy: {min_short_side: 16, min_long_side: 16}\n"
    )
    return path


@pytest.mark.long
@pytest.mark.timeout(900)
def test_samples_of_pictures_are_functions_of_the_seed(tmp_path: Path, pictures: Path) -> None:
    tables = []
    for seed in ("0", "1", "0"):
        for part in parts(tmp_path) if len(tables) == 2 else ():
            part.unlink()
        more = ("--model", str(MODEL), "--protocol", str(pictures), "--seed", seed)
        done = evaluate(tmp_path, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        tables.append(scores(tmp_path, "tiny-vbench"))
    first, other, same = ([row["metrics"] for row in table["rows"]] for table in tables)
    assert first == same != other
    assert tables[0]["facts"]["inputs"] == "2 of 355 pictures"
    kept = [np.load(path)["scores/temporal_flickering"] for path in parts(tmp_path)]
    assert len(kept) == 3 * 2 * 2  # ways, pictures, samples
    assert len({float(score[0]) for score in kept}) == len(kept)  # no video is like another
    student = tables[0]["rows"][-1]
    assert "real clips" in student["absent"]["fid"]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = evaluate(tmp_path, "--model", str(tmp_path / "nothing"))
    assert found.returncode == 2 and "--model: no weights" in found.stderr


@pytest.mark.long
def test_a_protocol_without_its_files_says_what_is_missing(tmp_path: Path) -> None:
    found = evaluate(tmp_path, "--model", str(MODEL), "--protocol", "i2v-vbench")
    assert found.returncode == 2 and "github.com/Vchitect/VBench" in found.stderr


def test_the_page_of_a_run_is_written_into_its_folder(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, load_recipe("portrait-tiny-smoke"))
    run.become_latest()
    done = evaluate(tmp_path, "--report", "latest")
    assert done.returncode == 0, done.stderr
    assert "unfinished: 0 of 2 cycles" in (run.path / "report.html").read_text()
    assert str(run.path / "report.html") in done.stdout
    refused = evaluate(tmp_path, "--report", "nothing")
    assert refused.returncode == 2 and "no run 'nothing'" in refused.stderr
