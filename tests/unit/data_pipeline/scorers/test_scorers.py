"""Scorers on videos made by hand, whose answer is known, and on a real talking head."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import av
import cv2
import numpy as np
import pytest
import torch

from magicdistill.data_pipeline.config import Decoder, Measures
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import decode, write_mp4
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.scorers.aesthetics import Aesthetics
from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Scorer, Values
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.blur import Blur
from magicdistill.data_pipeline.scorers.colour import Colour
from magicdistill.data_pipeline.scorers.embedding import Embedding
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.faces import Faces
from magicdistill.data_pipeline.scorers.frozen import Frozen
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.scorers.safety import Safety
from magicdistill.data_pipeline.scorers.text import Text
from magicdistill.data_pipeline.sources.package_clips import find_clips
from magicdistill.data_pipeline.stages.run_scorers import (
    AddScores,
    Meter,
    gpus_for,
    score_clip,
    try_out,
)
from magicdistill.data_pipeline.stages.score import score_video

CHEAP = (Black(), Blur(), Colour(), Exposure(), Frozen(), Letterbox())
REAL = {path.name: path for path, _ in find_clips()}


def moving(num_frames: int = 48, height: int = 128, width: int = 160, seed: int = 0) -> np.ndarray:
    """A picture of soft blobs that slides by two pixels a frame."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(60, 200, (height // 8, (width + 2 * num_frames) // 8, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (width + 2 * num_frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([picture[:, 2 * i : 2 * i + width] for i in range(num_frames)])


def row_of(path: Path, stop: int, fps: float = 24.0, start: int = 0) -> ClipRow:
    video = Video("x", "x", "x", str(path), "x", "x", "portrait")
    return ClipRow("x", video, "x", start=start, stop=stop, fps=fps)


def scores_of(tmp_path: Path, frames: np.ndarray, *scorers: Scorer) -> dict[str, float | None]:
    write_mp4(tmp_path / "clip.mp4", frames, 24)
    clip = row_of(tmp_path / "clip.mp4", len(frames))
    return score_clip(clip, tmp_path / "clip.mp4", scorers).scores


def real_scores(name: str, *scorers: Scorer) -> ClipRow:
    return score_clip(row_of(REAL[name], 120, fps=30.0), REAL[name], scorers)


def test_black_frames_are_timed(tmp_path: Path):
    frames = moving()
    frames[12:36] = 3
    scores = scores_of(tmp_path, frames, Black())
    assert scores == {"black.longest_s": pytest.approx(1), "black.share": pytest.approx(0.5)}


def test_a_picture_that_stands_still_is_timed_and_a_moving_one_is_not(tmp_path: Path):
    frames = moving()
    assert scores_of(tmp_path, frames, Frozen()) == {"frozen.longest_s": 0}
    frames[12:36] = frames[12]
    assert scores_of(tmp_path, frames, Frozen())["frozen.longest_s"] == pytest.approx(1, abs=0.13)


def test_bars_are_measured_and_a_dark_backdrop_is_none(tmp_path: Path):
    boxed = moving(height=160)
    boxed[:, :16] = 0
    boxed[:, -16:] = 0
    scores = scores_of(tmp_path, boxed, Letterbox())
    assert scores["letterbox.top"] == scores["letterbox.bottom"] == pytest.approx(0.1, abs=0.01)
    assert scores["letterbox.share"] == pytest.approx(0.2, abs=0.02)
    assert scores["letterbox.left"] == scores["letterbox.right"] == 0
    fading = np.clip(np.arange(160) * 2.0 - 40, 0, 200).astype(np.uint8)
    backdrop = np.broadcast_to(fading[None, None, :, None], (48, 128, 160, 3)).copy()
    assert scores_of(tmp_path, backdrop, Letterbox())["letterbox.share"] == 0
    assert scores_of(tmp_path, np.zeros_like(boxed), Letterbox())["letterbox.share"] == 0


@pytest.mark.parametrize(("level", "clipped"), [(8, 0), (130, 0), (253, 1)])
def test_exposure_is_the_mean_luma(level: int, clipped: float, tmp_path: Path):
    frames = np.full((24, 64, 64, 3), level, dtype=np.uint8)
    scores = scores_of(tmp_path, frames, Exposure())
    assert scores["exposure.luma"] == pytest.approx(level, abs=2)
    assert scores["exposure.clipped_share"] == clipped


def test_blur_grows_with_the_width_of_the_filter(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)
    blurs = []
    for sigma in (0.5, 1.5, 4.0):
        frame = cv2.GaussianBlur(noise, (0, 0), sigma)
        blurs.append(scores_of(tmp_path, np.stack([frame] * 12), Blur())["blur.effect"])
    assert 0 < blurs[0] < blurs[1] - 0.05 < blurs[2] - 0.1 < 0.9


def test_text_is_measured_by_its_area(tmp_path: Path):
    frames = moving(12, 360, 640)
    assert scores_of(tmp_path, frames, Text())["text.area"] == 0
    for frame in frames:
        cv2.putText(frame, "BREAKING NEWS", (120, 300), 0, 1.6, (255, 255, 255), 4)
    (width, height), _ = cv2.getTextSize("BREAKING NEWS", 0, 1.6, 4)
    area = scores_of(tmp_path, frames, Text())["text.area"]
    assert area == pytest.approx(width * height / 360 / 640, rel=0.6)


def test_one_real_face_is_found_in_every_frame_and_two_are_not_one(tmp_path: Path):
    clip = real_scores("carphone_pristine.mp4", Faces())
    assert clip.scores["faces.single_share"] == 1
    assert 0.05 < (clip.scores["faces.area_min"] or 0) < (clip.scores["faces.area_mean"] or 0) < 0.2
    assert (clip.scores["faces.jump"] or 0) < 0.3
    assert 0 < (clip.scores["faces.yaw_proxy_deg"] or 0) < 30
    head = np.stack(list(decode(REAL["carphone_pristine.mp4"])))[:12]
    pair = scores_of(tmp_path, np.concatenate([head, head[:, :, ::-1]], axis=2), Faces())
    assert pair["faces.single_share"] == 0
    assert pair["faces.area_mean"] == pytest.approx(
        (clip.scores["faces.area_mean"] or 0) / 2, rel=0.3
    )


def test_where_there_is_no_face_its_pose_is_null(tmp_path: Path):
    scores = scores_of(tmp_path, moving(24), Faces())
    assert scores["faces.single_share"] == scores["faces.area_mean"] == 0
    assert scores["faces.yaw_proxy_deg"] is None


def test_a_clothed_speaker_is_safe():
    assert (real_scores("carphone_pristine.mp4", Safety()).scores["safety.nsfw"] or 1) < 0.1


def bits_apart(one: ClipRow, other: ClipRow) -> float:
    hashes = [np.frombuffer(clip.blobs["phash"], np.uint64)[:8] for clip in (one, other)]
    return float(np.bitwise_count(hashes[0] ^ hashes[1]).mean())


def reencoded(frames: np.ndarray, path: Path, crf: str, size: int) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": crf})
        stream.height, stream.width, stream.pix_fmt = size, size * 5 // 4, "yuv420p"
        for frame in frames:
            small = cv2.resize(frame, (stream.width, stream.height), interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_hashes_survive_another_bitrate_and_size_and_tell_pictures_apart(tmp_path: Path):
    frames = moving()
    files = [
        reencoded(frames, tmp_path / "fine.mp4", "14", 128),
        reencoded(frames, tmp_path / "coarse.mp4", "38", 64),
        reencoded(moving(seed=1), tmp_path / "other.mp4", "14", 128),
    ]
    fine, coarse, other = (score_clip(row_of(f, 48), f, [PHash()]) for f in files)
    assert len(fine.blobs["phash"]) == 128
    assert bits_apart(fine, coarse) <= 6 < 15 < bits_apart(fine, other)


def test_a_scan_takes_the_scores_that_a_later_pass_takes(tmp_path: Path):
    frames = np.concatenate([moving(50), moving(46, seed=1)])
    path = tmp_path / "film.mp4"
    write_mp4(path, frames, 24)
    video = Video("v", "s", path.as_uri(), str(path), "f", "l", "general", split_shots=True)
    found = score_video(video, path, Measures(scorers=CHEAP))
    assert [clip.start for clip in found] == [0, 54]
    for clip in found:
        plain = row_of(path, clip.stop, start=clip.start)
        later = score_clip(plain, path, CHEAP).scores
        assert later == {n: v for n, v in clip.scores.items() if not n.startswith("video.")}
        assert clip.scorers == {scorer.kind: scorer.version for scorer in CHEAP}


def test_scores_are_those_of_the_crop(tmp_path: Path):
    frames = moving(24)
    frames[:, :, :80] = 0
    write_mp4(tmp_path / "clip.mp4", frames, 24)
    clip = row_of(tmp_path / "clip.mp4", 24)
    dark, bright = (
        score_clip(replace(clip, crop=crop), tmp_path / "clip.mp4", [Exposure()])
        for crop in ((0, 0, 80, 128), (80, 0, 160, 128))
    )
    assert (dark.scores["exposure.luma"], bright.scores["exposure.luma"]) == (
        pytest.approx(0, abs=3),
        pytest.approx(130, abs=20),
    )


class Redness(RateScorer):
    kind: Literal["redness"] = "redness"
    MODEL: ClassVar = "red over all"
    SCORES: ClassVar = ("share",)

    def look(self, frame: Frame, last: Frame | None) -> float:
        return float(frame.rgb[..., 0].sum() / frame.rgb.sum())

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        return {"share": float(np.mean(looks))}


def test_another_scorer_is_one_class(tmp_path: Path):
    frames = np.zeros((24, 64, 64, 3), dtype=np.uint8)
    frames[..., 0], frames[..., 1] = 150, 50
    meter = Meter(Redness(), fps=24.0)
    for index, frame in enumerate(frames):
        meter.update(index, Frame(frame))
    clip = meter.add_to(row_of(tmp_path, 24))
    assert clip.scores == {"redness.share": pytest.approx(0.75)}
    assert clip.scorers == {"redness": Redness().version}


def test_a_clip_between_two_samples_has_a_null_score(tmp_path: Path):
    assert Meter(Redness(), fps=24.0).add_to(row_of(tmp_path, 5, start=1)).scores == {
        "redness.share": None
    }


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, saved as transformers saves the real one."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = CLIPVisionConfig(
        **small, image_size=32, patch_size=16, num_attention_heads=2, projection_dim=12
    )
    text = CLIPTextConfig(**small, num_attention_heads=2, vocab_size=9, max_position_embeddings=4)
    config = CLIPConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=12
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_embedding_and_aesthetics_are_those_of_the_given_models(clip_model: Path, tmp_path: Path):
    from transformers import CLIPModel

    head = {
        "layers.0.weight": torch.randn(5, 12),
        "layers.0.bias": torch.randn(5),
        "layers.10.weight": torch.randn(1, 5),
        "layers.10.bias": torch.randn(1),
    }
    torch.save(head, tmp_path / "head.pth")
    frame = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(frame) / 255 - mean) / std).permute(2, 0, 1)[None]
    model: Any = CLIPModel.from_pretrained(clip_model)
    with torch.inference_mode():
        features = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        unit = features / features.norm()
        hidden = head["layers.0.weight"] @ unit + head["layers.0.bias"]
        expected = head["layers.10.weight"] @ hidden + head["layers.10.bias"]
    look = Embedding(clip=clip_model).look(Frame(frame), None)
    np.testing.assert_allclose(look, unit.numpy(), atol=1e-5)
    aesthetics = Aesthetics(clip=clip_model, predictor=tmp_path / "head.pth")
    assert aesthetics.look(Frame(frame), None) == pytest.approx(expected.item(), abs=1e-4)


def test_without_weights_a_scorer_is_absent_and_says_so():
    assert Aesthetics().version == "absent: no weights for aesthetics"
    assert Embedding().version == "absent: no weights for embedding"
    with pytest.raises(FileNotFoundError, match=r"scorer 'faces', /nowhere/face\.onnx"):
        _ = Faces(weights=Path("/nowhere/face.onnx")).version


def test_a_version_names_settings_and_weights_and_not_where_they_lie(tmp_path: Path):
    (packaged,) = Faces().weights_files() or [Path()]
    copy = tmp_path / "other-name.onnx"
    copy.write_bytes(packaged.read_bytes())
    assert Faces(weights=copy).version == Faces().version
    copy.write_bytes(b"something else")
    assert Faces(weights=copy).version != Faces().version
    assert Faces(sampling_fps=2).version != Faces().version
    assert (
        Faces().describe()["weights_sha256"] == Faces(weights=packaged).describe()["weights_sha256"]
    )


def test_weights_that_cannot_be_loaded_stop_the_run_and_blame_no_clip(tmp_path: Path):
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(RuntimeError, match="scorer 'faces' of the recipe cannot run"):
        AddScores([Faces(weights=tmp_path / "bad.onnx")], Decoder())


def test_a_gpu_is_reserved_for_networks_that_use_it_and_no_score_is_taken_again(clip_model: Path):
    measures = Measures(num_gpus_per_actor=0.25)
    assert measures.version == Measures().version == "c9d6ba5e2465"
    assert gpus_for([PHash(), Embedding(clip=clip_model)], measures) == 0.25
    assert gpus_for([PHash(), Faces(), Embedding()], measures) == 0
    assert gpus_for([Embedding(clip=clip_model)], Measures()) == 0


def test_a_process_without_a_reserved_gpu_sees_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with Sandbox(60.0, load=partial(try_out, [PHash()], False)) as sandbox:
        assert sandbox.call(os.getenv, "CUDA_VISIBLE_DEVICES").value == ""


def test_a_reserved_gpu_that_is_not_there_stops_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match=r"num_gpus_per_actor asks for a GPU, and PyTorch finds"):
        AddScores([PHash()], Decoder(), has_gpu=True)


@pytest.mark.gpu
def test_embeddings_of_a_gpu_are_those_of_a_cpu(clip_model: Path):
    frame = Frame(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))
    scorer = Embedding(clip=clip_model)
    looks = []
    for has_gpu in (False, True):
        with Sandbox(300.0, load=partial(try_out, [scorer], has_gpu)) as sandbox:
            looks.append(sandbox.call(scorer.look, frame, None).value)
            assert sandbox.call(torch.cuda.is_initialized).value == has_gpu
    np.testing.assert_allclose(*looks, atol=1e-3)


def test_recipes_name_scorers_once():
    with pytest.raises(ValueError, match="not black twice"):
        Measures(scorers=(Black(), Black()))
    assert Measures(scorers=CHEAP).version == Measures().version
