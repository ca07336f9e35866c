"""Odd files: frame k is the k-th frame that a player shows, upright, at its time, however reached.

Every frame shows its own number, so that the truth is read from the pixels.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket, Limit, Measures, Policy
from magicdistill.data_pipeline.latents.windows import decode_windows
from magicdistill.data_pipeline.media.frame_ranges import cropped, frame_range_of
from magicdistill.data_pipeline.media.video import (
    VideoError,
    decode,
    frames_in,
    probe,
    read_frames,
    write_frames,
)
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.scorers.base import Frame
from magicdistill.data_pipeline.stages.score import score_video
from tests.curation_tables import decide
from tests.odd_videos import (
    KINDS,
    X264,
    encode,
    number_of,
    numbered,
    numbers_of,
    tagged,
    three_streams,
    turned,
    vfr,
)


@pytest.mark.parametrize(("file", "shown", "make"), KINDS.values(), ids=KINDS)
def test_a_number_means_the_same_frame_in_sequence_and_anywhere(
    file: str, shown: range, make: Callable[[Path], Path], tmp_path: Path
):
    path = make(tmp_path / file)
    assert probe(path).num_frames == len(shown)
    assert numbers_of(decode(path)) == list(shown)
    for start in range(0, len(shown), 5):
        assert numbers_of(decode(path, start, start + 3)) == list(shown[start : start + 3])
    strided = range(7, len(shown), 13)
    assert numbers_of(read_frames(path, strided)) == list(shown[7::13])
    checksums = [frame.checksum for frame in frames_in(path)]
    assert checksums[30:] == [frame.checksum for frame in frames_in(path, 30)]
    alone = [frame.checksum for k in range(0, 60, 4) for frame in frames_in(path, k, k + 1)]
    assert checksums[::4] == alone
    assert len(set(checksums)) == len(checksums)


@pytest.mark.parametrize(("file", "shown", "make"), KINDS.values(), ids=KINDS)
def test_the_frames_that_are_encoded_are_those_that_were_scored(
    file: str, shown: range, make: Callable[[Path], Path], tmp_path: Path
):
    clip = score(make(tmp_path / file))
    assert (clip.start, clip.stop, clip.num_frames_decoded) == (0, len(shown), len(shown))
    bucket = Bucket(num_frames=17, height=64, width=128, fps=clip.fps)
    windows = decode_windows(clip, tmp_path / file, bucket, 3)
    assert numbers_of(windows[0]) == by_time(shown, clip, 0, 17)
    with pytest.raises(VideoError, match=r"frame \d+ is not the one that was scored"):
        other = f"{int(clip.frame_checksums, 16) ^ 0x10001:x}".zfill(len(clip.frame_checksums))
        decode_windows(replace(clip, frame_checksums=other), tmp_path / file, bucket, 1)
    old = replace(clip, frame_checksums="", decoder="decord")
    assert np.array_equal(decode_windows(old, tmp_path / file, bucket, 3), windows)


def by_time(shown: range, clip: ClipRow, start: int, num: int) -> list[int]:
    """Return the numbers shown at even times from a start on."""
    if not clip.scores["video.variable_rate"]:
        return list(shown[start : start + num])
    times = np.array([vfr(number) / 30 for number in shown])
    wanted = times[start] + np.arange(num) / clip.fps
    return [shown[int(np.abs(times - time).argmin())] for time in wanted]


def score(path: Path, **changes: Any) -> ClipRow:
    (clip,) = score_video(video_of(path, **changes), path, Measures(shots="none"))
    return clip


def video_of(path: Path, **changes: Any) -> Video:
    return replace(Video("v", "s", "file:///v", str(path), "f", "l", "portrait"), **changes)


def test_seconds_are_those_that_are_shown_where_the_rate_varies(tmp_path: Path):
    path = encode(tmp_path / "a.mp4", options=X264, pts=vfr)
    assert frame_range_of(video_of(path, t0_s=1.0, t1_s=1.2), probe(path)).start == 30
    late = frame_range_of(video_of(path, t0_s=40 / 30 + 1.0, t1_s=40 / 30 + 2.0), probe(path))
    assert (late.start, late.stop) == (45, 50)
    clip = score(path, t0_s=1.0, t1_s=40 / 30 + 2.0)
    assert clip.scores == {"video.hdr": 0, "video.interlaced": 0, "video.variable_rate": 1}
    (window,) = decode_windows(clip, path, Bucket(num_frames=17, height=64, width=128, fps=10), 1)
    steps = np.diff(numbers_of(window))
    assert steps[0] == 3 and set(steps[-10:]) == {0, 1}  # 30 a second, then 5, shown at 10
    still = score(path, t1_s=1.2)
    assert still.fps == pytest.approx(30) and not still.scores["video.variable_rate"]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_frames_stand_upright(degrees: int, is_mirrored: bool, tmp_path: Path):
    path = turned(tmp_path / "a.mp4", degrees, is_mirrored)
    assert numbers_of(decode(path)) == [0, 1, 2, 3, 4]
    clip = score(path, crop=(0.5, 0.0, 1.0, 1.0), crop_frame=(1.0, 1.0))
    assert (probe(path).width, probe(path).height) == (128, 64)
    assert (clip.width, clip.height, clip.crop) == (64, 64, (64, 0, 128, 64))


@pytest.mark.parametrize("crop", [(), (9, 6, 101, 60)])
@pytest.mark.parametrize("short_side", [24, 54, 200])
@pytest.mark.parametrize("name", ["turned", "wide pixels", "10 bits, 4:2:2", "RGB", "full range"])
def test_luma_for_scorers_is_that_of_the_frame_as_shown(
    name: str, short_side: int, crop: tuple[int, ...], tmp_path: Path
):
    make: dict[str, Callable[[], Path]] = {
        "turned": lambda: turned(tmp_path / "a.mp4", 270, True),
        "wide pixels": lambda: encode(
            tmp_path / "a.mp4", 5, size=(96, 64), prepare=tagged(sample_aspect_ratio=Fraction(4, 3))
        ),
        "full range": lambda: encode(tmp_path / "a.mp4", 5, pix_fmt="yuvj420p"),
    }
    path = make[name]() if name in make else KINDS[name][2](tmp_path / KINDS[name][0])
    for frame in islice(frames_in(path), 5):
        seen, shown = frame.for_scorers(crop), Frame(cropped(frame.rgb, crop))
        assert np.array_equal(seen.rgb, shown.rgb)
        luma, expected = seen.gray(short_side).astype(int), shown.gray(short_side)
        assert luma.shape == expected.shape
        assert np.abs(luma - expected).mean() < 1.5
    assert number_of(seen.gray(200)) == 4 or crop


@pytest.mark.parametrize(
    ("aspect", "size", "shown"),
    [("4/3", (96, 64), (128, 64)), ("1/2", (128, 32), (128, 64)), ("1001/1000", (128, 64), None)],
)
def test_pixels_are_made_square_and_none_is_lost(
    aspect: str, size: tuple[int, int], shown: tuple[int, int] | None, tmp_path: Path
):
    prepare = tagged(sample_aspect_ratio=Fraction(aspect))
    path = encode(tmp_path / "a.mp4", 5, prepare=prepare, size=size)
    frames = list(decode(path))
    assert frames[0].shape[1::-1] == (shown or size)
    assert (probe(path).width, probe(path).height) == (shown or size)
    assert numbers_of(frames) == [0, 1, 2, 3, 4]


def test_pixels_that_are_absurdly_wide_are_refused(tmp_path: Path):
    path = encode(tmp_path / "a.mp4", 5, prepare=tagged(sample_aspect_ratio=Fraction(10)))
    with pytest.raises(VideoError, match="bad sample aspect ratio"):
        probe(path)


def test_of_several_streams_all_readers_take_the_one_that_a_player_takes(tmp_path: Path):
    path = three_streams(tmp_path / "a.mp4")
    assert (probe(path).width, probe(path).height) == (128, 64)
    assert numbers_of(decode(path)) == list(range(12))
    assert numbers_of(read_frames(path, [3, 9])) == [3, 9]


@pytest.mark.parametrize(
    ("score_name", "how"),
    [
        ("video.hdr", {"prepare": tagged(color_trc=16, colorspace=9, color_primaries=9)}),
        ("video.hdr", {"prepare": tagged(color_trc=18, colorspace=9, color_primaries=9)}),
        ("video.interlaced", {"options": {"x264-params": "tff=1"}}),
        ("video.variable_rate", {"pts": vfr}),
        ("", {}),
    ],
)
def test_what_cannot_be_shown_right_is_named_and_the_policy_refuses_it(
    score_name: str, how: dict[str, Any], tmp_path: Path
):
    clip = score(encode(tmp_path / "a.mp4", **how))
    found = [name for name, value in clip.scores.items() if value]
    assert found == ([score_name] if score_name else [])
    refused = score_name in ("video.hdr", "video.interlaced")
    assert reasons(clip, "motion.px") == ((f"{score_name}: 1 > 0",) if refused else ())
    assert not reasons(clip, "motion.px", score_name or "video.hdr")


def reasons(clip: ClipRow, *lifted: str) -> tuple[str, ...]:
    """Return why a clip is refused where some limits are lifted."""
    limits = {"all": {name: Limit() for name in lifted}}
    policy = Policy(min_short_side=0, min_long_side=0, limits=limits)  # type: ignore[arg-type]
    return decide([clip], policy, Bucket(height=64, width=128))[0].reasons


@pytest.mark.parametrize(
    ("size", "matrix"), [((1280, 64), "ITU709"), ((64, 640), "ITU709"), ((640, 480), "ITU601")]
)
def test_colours_without_a_tag_are_those_of_their_definition(
    size: tuple[int, int], matrix: str, tmp_path: Path
):
    colour = np.full((size[1], size[0], 3), (200, 60, 30), np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(colour, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
        frame.colorspace = 2
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    (shown,) = decode(tmp_path / "a.mp4")
    assert np.abs(shown.astype(int) - colour).max() <= 4


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "aspect"),
    [
        ("ffv1", "yuv420p", 1),
        ("ffv1", "yuv420p", Fraction(4, 3)),
        ("ffv1", "yuv420p10le", 1),
        ("prores_ks", "yuv422p10le", 1),
        ("ffv1", "yuv444p12le", 1),
    ],
)
def test_white_is_white_and_black_is_black_at_any_depth_and_shape_of_pixels(
    codec: str, pix_fmt: str, aspect: Fraction, tmp_path: Path
):
    path = encode(
        tmp_path / "a.mkv",
        1,
        codec,
        pix_fmt=pix_fmt,
        prepare=tagged(sample_aspect_ratio=aspect),
        picture=lambda _: (
            np.array([0, 255], np.uint8).repeat(64)[None, :, None].repeat(64, 0).repeat(3, 2)
        ),
    )
    (shown,) = decode(path)
    assert shown[:, :60].max() <= 1 and shown[:, -60:].min() >= 254


def test_a_title_in_another_encoding_is_no_damage(tmp_path: Path):
    path = tmp_path / "a.mp4"
    write_frames(path, map(numbered, range(5)), 24, comment="Aerial")
    path.write_bytes(path.read_bytes().replace(b"Aerial", b"\xc4erial"))
    assert numbers_of(decode(path)) == list(range(5))


def test_numbers_are_read_only_from_upright_pictures():
    shown = numbered(37)
    assert number_of(shown) == 37
    for wrong in (shown[::-1], shown[:, ::-1], shown[::-1, ::-1], np.rot90(shown), 0 * shown):
        assert number_of(wrong) == -1
