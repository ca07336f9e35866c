"""Video from a first frame, with the models that come with the project."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from magicdistill.data_pipeline.media.video import decode, probe
from magicdistill.models.networks.int8 import weight_bytes
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.export.pretrained_model import (
    ASSETS,
    find_pretrained,
    find_student,
    shipped_for,
)
from magicdistill.platform.inference.orders import (
    Order,
    plan_windows,
    read_orders,
    read_picture,
)
from magicdistill.platform.inference.sample_video import (
    VideoSampler,
    choose_threads,
    describe,
    difference_db,
    is_made,
)
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.tiny_encoders import PROMPTS, tiny_encoder

ROOT = Path(__file__).parents[4]
FACE = ASSETS / "portrait-tiny" / "face.png"


@pytest.fixture(scope="module")
def sampler() -> VideoSampler:
    return VideoSampler(find_pretrained("student-4step"))


def pixels(path: Path) -> np.ndarray:
    return np.stack(list(decode(path)))


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "sample.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_picture_becomes_a_video_of_the_model_s_shape(sampler, tmp_path):
    order = Order(FACE, tmp_path / "new" / "v.mp4")
    assert sampler.make(order) is None
    header = probe(order.out)
    assert (header.width, header.height, header.fps, header.num_frames) == (64, 64, 24, 17)
    assert header.codec == "h264"
    with Image.open(FACE) as image:
        first = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX))
    frames = pixels(order.out).astype(float)
    assert np.abs(frames[0] - first).mean() < 8
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.3  # it moves
    with Image.open(order.sheet) as sheet:
        assert sheet.width > 16 * 160


def test_the_seed_decides(sampler, tmp_path):
    first, same, other = (Order(FACE, tmp_path / f"{i}.mp4", seed=i // 2) for i in range(3))
    for order in (first, same, other):
        sampler.make(order)
    assert first.out.read_bytes() == same.out.read_bytes()
    assert not np.array_equal(pixels(first.out), pixels(other.out))


def test_a_long_video_has_no_seams_that_show(sampler, tmp_path):
    order = Order(FACE, tmp_path / "v.mp4", seconds=2)
    done = []
    drift = sampler.make(order, lambda count, total: done.append((count, total)))
    assert drift is not None
    seams = drift.seams
    assert probe(order.out).num_frames == 48
    assert done == [(12, 48), (24, 48), (36, 48), (48, 48)]
    assert seams.seam < 2 * seams.within
    assert seams.mean_drift < 3


def test_a_video_is_made_again_where_anything_about_it_changed(sampler, tmp_path):
    image = tmp_path / "face.png"
    shutil.copy(FACE, image)
    order = Order(image, tmp_path / "v.mp4")
    assert not is_made(sampler.model, order)
    sampler.make(order)
    assert is_made(sampler.model, order)
    for change in ({"seed": 1}, {"seconds": 1.0}, {"prompt": "a face"}):
        assert not is_made(sampler.model, replace(order, **change))
    assert not is_made(sampler.model.changed(num_steps=2), order)
    whole = order.out.read_bytes()
    order.out.write_bytes(whole[: len(whole) * 2 // 3])
    assert not is_made(sampler.model, order)
    order.out.write_bytes(whole)
    Image.new("RGB", (64, 64)).save(image)
    assert not is_made(sampler.model, order)


def test_other_encoders_make_another_video_of_a_prompt_only(sampler, tmp_path):
    one, other = (tmp_path / name for name in ("one", "other"))
    tiny_encoder(64).save(one)
    tiny_encoder(64).save(other)
    shutil.copy(other / "tokenizer" / "tokenizer.json", other / "tokenizer" / "more.json")
    null, prompted = (
        Order(FACE, tmp_path / "v.mp4"),
        Order(FACE, tmp_path / "v.mp4", prompt="a face"),
    )
    names = [describe(replace(sampler.model, encoders=e), null) for e in (one, other)]
    assert names[0] == names[1]
    names = [describe(replace(sampler.model, encoders=e), prompted) for e in (one, other)]
    assert names[0] != names[1]


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_other_numbers_give_nearly_the_same_video(sampler, dtype):
    if dtype == "int8":
        pytest.importorskip("torchao", reason="the extra int8 is not installed")
    assert 40 < difference_db(sampler.model, Order(FACE, Path()), dtype) < 80


def is_offloaded(module: nn.Module) -> bool:
    """Tell whether diffusers watches every module that has weights of its own."""
    owners = [part for part in module.modules() if list(part.parameters(recurse=False))]
    return all(hasattr(part, "_diffusers_hook") for part in owners)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_layers_that_come_one_by_one_make_the_same_video(sampler, dtype):
    if dtype == "int8":
        pytest.importorskip("torchao", reason="the extra int8 is not installed")
    image, order = np.array(Image.open(FACE).convert("RGB").resize((64, 64))), Order(FACE, Path())
    windows = plan_windows(order, sampler.model.buckets[0])
    whole = VideoSampler(replace(sampler.model, dtype=dtype))
    offloaded = VideoSampler(replace(sampler.model, dtype=dtype, offload=True))
    assert is_offloaded(offloaded.velocity.transformer)
    assert not is_offloaded(whole.velocity.transformer)
    first, second = (next(made.parts(image, order, windows)) for made in (whole, offloaded))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_prompt_goes_through_the_encoders_beside_the_model(sampler, tmp_path, dtype):
    if dtype == "int8":
        pytest.importorskip("torchao", reason="the extra int8 is not installed")
    tiny_encoder(64).save(tmp_path)
    made = VideoSampler(replace(sampler.model, encoders=tmp_path, dtype=dtype))
    image, order = np.array(Image.open(FACE).convert("RGB").resize((64, 64))), Order(FACE, Path())
    windows = plan_windows(order, sampler.model.buckets[0])
    null, one, same, other = (
        next(made.parts(image, replace(order, prompt=prompt), windows))
        for prompt in (None, PROMPTS[0], PROMPTS[0], PROMPTS[1])
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, null) and not torch.equal(one, other)
    encoder = made.encoder
    assert encoder is not None
    plain = weight_bytes(tiny_encoder(64))
    if dtype == "fp32":
        assert weight_bytes(encoder) == plain
    else:
        assert weight_bytes(encoder) < plain / 2  # bfloat16 alone would be half


def test_models_are_found_by_name_folder_and_run(tmp_path):
    student = find_pretrained("student-4step")
    assert student == find_pretrained("portrait-tiny/student-4step")
    assert student == find_pretrained(str(ASSETS / "portrait-tiny" / "student-4step"))
    assert (student.sampler.num_steps, student.sampler.shift) == (4, 5)
    assert find_pretrained("teacher").sampler.num_steps == 28
    run = RunDirectory.create(tmp_path, load_recipe("portrait-tiny-smoke"))
    with pytest.raises(ExplainedError, match=r"no finished model.*export"):
        find_pretrained(str(run.path))
    shutil.copytree(student.transformer, run.path / "model")
    run.become_latest()
    for location in ("latest", str(run.path), str(run.path / "model")):
        found = find_pretrained(location, runs=str(tmp_path))
        assert found.transformer == run.path.resolve() / "model"
        assert (found.vae, found.buckets) == (student.vae, student.buckets)


def test_a_model_of_no_backbone_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(
        ExplainedError, match=r"--model .* holds weights of FluxTransformer2DModel,"
    ):
        find_pretrained(str(tmp_path))


def test_the_shipped_model_is_the_one_for_as_many_steps(tmp_path):
    names = {steps: shipped_for(steps) for steps in (None, 1, 2, 4, 28)}
    assert names == dict.fromkeys((None, 2, 4), "student-4step") | {
        1: "student-1step",
        28: "teacher",
    }
    one, four = (find_pretrained(name) for name in ("student-1step", "student-4step"))
    assert one.sampler.num_steps == 1
    assert (find_student(four, 1), find_student(one, 4)) == (one, four)
    shutil.copytree(four.transformer, tmp_path / "own")
    own = find_pretrained(str(tmp_path / "own"), vae=str(four.vae))
    assert find_student(own, 1) == own.changed(num_steps=1)


def test_a_folder_without_a_recipe_needs_a_vae_and_takes_one_beside_it(tmp_path):
    student = find_pretrained("student-4step")
    shutil.copytree(student.transformer, tmp_path / "pipeline" / "transformer")
    with pytest.raises(ExplainedError, match="--vae"):
        find_pretrained(str(tmp_path / "pipeline"))
    with pytest.raises(ExplainedError, match="--vae"):
        find_pretrained(str(tmp_path / "pipeline"), vae="nowhere")
    shutil.copytree(student.vae, tmp_path / "pipeline" / "vae")
    found = find_pretrained(str(tmp_path / "pipeline"))
    assert (found.sampler.num_steps, found.sampler.shift) == (50, 17)  # as published
    found = found.changed((17, 64, 64), num_steps=4, shift=5, image_start=0)
    assert found.vae == tmp_path / "pipeline" / "vae"
    VideoSampler(found).make(Order(FACE, tmp_path / "a.mp4"))
    VideoSampler(student).make(Order(FACE, tmp_path / "b.mp4"))
    assert np.array_equal(pixels(tmp_path / "a.mp4"), pixels(tmp_path / "b.mp4"))


def test_what_is_wrong_is_said_in_a_sentence(sampler, tmp_path):
    with pytest.raises(ExplainedError, match=r"student-4step.*teacher"):
        find_pretrained("nothing")
    with pytest.raises(ExplainedError, match="no image"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ExplainedError, match="no picture"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(ExplainedError, match="--encoders"):
        sampler.make(Order(FACE, tmp_path / "v.mp4", prompt="a face"))
    with pytest.raises(ExplainedError, match="overlap"):
        sampler.make(Order(FACE, tmp_path / "v.mp4", seconds=2, overlap=4))
    with pytest.raises(ExplainedError, match="num_steps 0"):
        sampler.model.changed(num_steps=0)
    assert not (tmp_path / "v.mp4").exists()


def test_a_list_names_its_videos_and_seeds_them_by_line(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": "a.png"}\n\n{"image": "/b.png", "name": "bee", "seed": 9}\n')
    defaults = Order(Path(), Path(), seed=4, seconds=3)
    first, second = read_orders(path, Path("out"), defaults)
    assert first == Order(tmp_path / "a.png", Path("out/0000-a.mp4"), seed=4, seconds=3)
    assert second == Order(Path("/b.png"), Path("out/bee.mp4"), seed=9, seconds=3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"picture": "a.png"}', "line 1: picture"),
        ('{"image": "a.png", "name": "b/x"}', "line 1: name"),
        ('{"image": "a.png", "name": "x"}\n{"image": "b.png", "name": "x"}', "have the name x"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path, text, reason):
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    with pytest.raises(ExplainedError, match=reason):
        read_orders(path, tmp_path, Order(Path(), Path()))


def test_the_job_asks_for_what_it_needs_before_it_loads_anything(monkeypatch):
    with monkeypatch.context() as traced:
        traced.setenv("PYTHONPROFILEIMPORTTIME", "1")
        helped = job("--help")
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "tyro" in imported and not imported & {"torch", "ray", "diffusers", "cv2", "av"}
    assert helped.returncode == 0 and "--inputs" in helped.stdout
    with monkeypatch.context() as traced:
        traced.setenv("PYTHONPROFILEIMPORTTIME", "1")
        refused = job("--image", "none.png", "--out", "v.mp4")
    imported = {line.rpartition("|")[2].strip() for line in refused.stderr.splitlines()}
    assert "PIL.Image" in imported and not imported & {"torch", "ray", "diffusers", "cv2"}
    assert refused.returncode == 2 and "no image none.png" in refused.stderr


def test_a_small_network_computes_with_one_thread_unless_told_otherwise(sampler, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        choose_threads(sampler.model)
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        choose_threads(sampler.model)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_shape_that_the_model_was_not_trained_for_is_warned_of(sampler):
    assert sampler.model.never_made((17, 64, 64)) is None
    warning = sampler.model.never_made((17, 128, 64))
    assert "17 x 128 x 64" in warning and "was trained on 17 x 64 x 64" in warning
