"""Importers on small replicas of the published files, their faults included."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.rows import Video, videos_from_table, videos_to_table
from magicdistill.data_pipeline.sources.data_sets.celebv_hq import CelebvHq
from magicdistill.data_pipeline.sources.data_sets.hdtf import Hdtf
from magicdistill.data_pipeline.sources.data_sets.inter4k import Inter4K
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.data_sets.talkvid import TalkVid
from magicdistill.data_pipeline.sources.data_sets.vfhq import Vfhq
from magicdistill.data_pipeline.sources.entries import Fault, parse_time
from magicdistill.data_pipeline.sources.json_lines import JsonLines
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.stores import Store

KOALA_HEADER = [
    "videoID", "url", "timestamp", "caption", "clarity_score", "aesthetic_score", "motion_score",
    "video_training_suitability_score",
]  # fmt: skip
BOM = "\ufeff"


def touch(folder: Path, *names: str) -> Path:
    """Make a store of non-empty files."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return folder


def write_koala(path: Path, rows: Sequence[Sequence[object]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(BOM)
        csv.writer(file).writerows([KOALA_HEADER, *rows])
    return str(path)


def koala_row(name: str, span: str, caption: str = "A cat.", clarity: object = 0.9) -> list[object]:
    url = f"https://www.youtube.com/watch?v={name[:-2]}"
    return [name, url, span, caption, clarity, 4.58, 50.87, 4.35]


def by_entry(videos: Iterable[Video]) -> dict[str, Video]:
    found: dict[str, Video] = {}
    for video in videos:
        assert found.setdefault(video.entry, video) is video
    return found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00:28.028", 28.028), ("00:01:30", 90.0), ("02:05", 125.0), ("1:00:00.5", 3600.5)],
)
def test_times_are_read_in_every_published_format(text: str, seconds: float):
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "12", "1:2:3:4", "-0:00:01", "0:00:xx", "nan"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(Fault, match="bad timestamp"):
        parse_time(text)


@pytest.fixture
def koala_manifest(tmp_path: Path) -> str:
    long_caption = 'A man, seen from afar,\nsays "hello".'
    return write_koala(
        tmp_path / "koala.csv",
        [
            koala_row("-KuN4XkUQBI_1", "['0:00:28.028', '0:00:45.045']", long_caption),
            koala_row("under_score_12", "['00:00:02', '00:00:05']", clarity=""),
            koala_row("bbbbbbbbbbb_3", "['00:10', '00:05']"),
            koala_row("ccccccccccc_4", "['0:00:28.028'"),
            koala_row("ddddddddddd_5", "__import__('os').abort()"),
            koala_row("eeeeeeeeeee_6", "['00:10', '00:15']"),
            koala_row("eeeeeeeeeee_7", "['00:10', '00:15']", clarity="high"),
            ["fffffffffff_8", "url", "['00:10', '00:15']"],
            koala_row("noindex", "['00:10', '00:15']"),
        ],
    )


def test_koala_rows_become_spans_of_videos_with_captions_and_scores(
    koala_manifest: str, tmp_path: Path
):
    store = touch(tmp_path / "store", "-KuN4XkUQBI.mp4", "under_score.mp4")
    source = Koala(manifests=(koala_manifest,), store=Store(path=str(store), holds="videos"))
    videos = by_entry(iter_videos([source], tmp_path))
    dashed = videos["-KuN4XkUQBI_1"]
    assert (dashed.t0_s, dashed.t1_s, dashed.fault) == (28.028, 45.045, "")
    assert dashed.caption == 'A man, seen from afar,\nsays "hello".'
    assert dashed.source_id == "koala-36m/-KuN4XkUQBI"
    assert dashed.license.startswith("Koala-36M") and dashed.mixture == "general"
    assert dashed.path == str(store / "-KuN4XkUQBI.mp4")
    assert dashed.imported_scores == {
        "koala.clarity": 0.9,
        "koala.aesthetic": 4.58,
        "koala.motion": 50.87,
        "koala.suitability": 4.35,
    }
    assert "koala.clarity" not in videos["under_score_12"].imported_scores
    assert videos["under_score_12"].source_id == "koala-36m/under_score"


def test_every_unusable_koala_row_is_listed_with_its_reason(koala_manifest: str, tmp_path: Path):
    store = touch(tmp_path / "store", *(f"{c * 11}.mp4" for c in "bcdf"))
    source = Koala(manifests=(koala_manifest,), store=Store(path=str(store), holds="videos"))
    faults = {name: v.fault for name, v in by_entry(iter_videos([source], tmp_path)).items()}
    assert faults == {
        "-KuN4XkUQBI_1": "missing file",
        "under_score_12": "missing file",
        "bbbbbbbbbbb_3": "bad timestamp: 10 to 5 s",
        "ccccccccccc_4": "bad timestamp: \"['0:00:28.028'\"",
        "ddddddddddd_5": "bad timestamp: \"__import__('os').abort()\"",
        "eeeeeeeeeee_6": "missing file",
        "eeeeeeeeeee_7": "bad score: clarity='high'",
        "fffffffffff_8": "bad row: line 10 has not as many fields as the header",
        "noindex": "bad row: line 11 has the videoID 'noindex'",
    }


def test_clips_that_are_cut_already_need_no_span(koala_manifest: str, tmp_path: Path):
    store = touch(tmp_path / "store", "-KuN4XkUQBI_1.mp4", "ccccccccccc_4.mp4")
    source = Koala(manifests=(koala_manifest,), store=Store(path=str(store)))
    videos = by_entry(iter_videos([source], tmp_path))
    for name in ("-KuN4XkUQBI_1", "ccccccccccc_4"):
        video = videos[name]
        assert (video.fault, video.t0_s, video.t1_s) == ("", 0.0, None)


def test_a_file_that_arrives_later_changes_the_fingerprint_and_not_the_id(
    koala_manifest: str, tmp_path: Path
):
    store = touch(tmp_path / "store", "other.mp4")
    source = Koala(manifests=(koala_manifest,), store=Store(path=str(store), holds="videos"))
    before = by_entry(iter_videos([source], tmp_path))["-KuN4XkUQBI_1"]
    touch(store, "-KuN4XkUQBI.mp4")
    after = by_entry(iter_videos([source], tmp_path))["-KuN4XkUQBI_1"]
    assert before.video_id == after.video_id
    assert before.fingerprint != after.fingerprint


def test_a_csv_of_another_format_is_named(tmp_path: Path):
    (tmp_path / "other.csv").write_text("id,text\n1,a\n")
    store = Store(path=str(tmp_path))
    with pytest.raises(ValueError, match=r"other\.csv lacks the columns aesthetic_score, caption"):
        list(iter_videos([Koala(manifests=(str(tmp_path / "other.csv"),), store=store)], tmp_path))
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        list(iter_videos([Koala(manifests=(str(tmp_path / "none.csv"),), store=store)], tmp_path))


def test_rows_listed_twice_are_counted(
    koala_manifest: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = Store(path=str(touch(tmp_path / "store", "-KuN4XkUQBI_1.mp4")))
    with caplog.at_level("INFO"):
        videos = list(iter_videos([Koala(manifests=(koala_manifest,) * 2, store=store)], tmp_path))
    assert len(videos) == 9
    assert "'listed before': 9" in caplog.text and "'missing file': 5" in caplog.text


def test_a_name_that_leads_out_of_the_store_is_refused(tmp_path: Path):
    manifest = write_koala(tmp_path / "k.csv", [koala_row("../../etc/x_1", "['00:01', '00:05']")])
    store = Store(path=str(touch(tmp_path / "store", "a.mp4")), holds="videos")
    (video,) = iter_videos([Koala(manifests=(manifest,), store=store)], tmp_path)
    assert "leads out of the store" in video.fault and video.path == video.uri == ""


@pytest.fixture
def hdtf_folder(tmp_path: Path) -> Path:
    """Two of the three sets with the faults of the published files."""
    folder = tmp_path / "HDTF_dataset"
    folder.mkdir()
    texts = {
        "RD_video_url": "Radio11 https://www.youtube.com/watch?v=uJ4\nRadio24 https://y.be/x&t=6s\n",
        "RD_resolution": "Radio11.mp4 720\nRadio24.mp4 720\n",
        "RD_annotion_time": "Radio11.mp4 00:30-01:00 01:30-02:30 \n",
        "RD_crop_wh": "Radio11_0.mp4 412 599 0 599\n",
        "WDA_video_url": f"{BOM}CarolynMaloney2 https://www.youtube.com/watch?v=RAp\nKevin x\n",
        "WDA_resolution": "CarolynMaloney2.mp4 1080\nKevin.mp4 0\n",
        "WDA_annotion_time": "CarolynMaloney2.mp4 00:05-04:40\nKevin.mp4 00:05-00:10\n",
        "WDA_crop_wh": "CarolynMaloney2_0.mp4 608 726 0 726\nKevin_0.mp4 1 2 3 2\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_hdtf_spans_are_numbered_and_faults_are_told_apart(hdtf_folder: Path, tmp_path: Path):
    names = ("Radio11.mp4", "Radio24.mp4", "CarolynMaloney2.mp4", "Kevin.mp4")
    store = Store(path=str(touch(tmp_path / "store", *names)), holds="videos")
    source = Hdtf(path=str(hdtf_folder), splits=("RD", "WDA"), store=store)
    videos = by_entry(iter_videos([source], tmp_path))
    assert {name: video.fault for name, video in videos.items()} == {
        "Radio11_0": "",
        "Radio11_1": "missing crop",
        "Radio24": "missing span",
        "CarolynMaloney2_0": "",
        "Kevin_0": "bad resolution: '0'",
    }
    first = videos["Radio11_0"]
    assert (first.t0_s, first.t1_s) == (30.0, 60.0)
    assert (first.crop, first.crop_frame) == ((412.0, 0.0, 1011.0, 599.0), (0.0, 720.0))
    assert first.source_id == "hdtf/Radio11" and first.license == "CC BY 4.0"


def test_hdtf_lines_of_one_name_and_crops_without_a_span_are_not_lost(
    hdtf_folder: Path, tmp_path: Path
):
    spans, crops = hdtf_folder / "RD_annotion_time.txt", hdtf_folder / "RD_crop_wh.txt"
    spans.write_text("Radio11.mp4 00:30-01:00\nRadio11.mp4 01:30-02:30\nRadio11.mp4 01:30-02:30\n")
    crops.write_text(
        "Radio11_0.mp4 0 9 0 9\nRadio11_1.mp4 0 9 0 9\nRadio11_1.mp4 0 8 0 8\nGone_2 0"
    )
    store = Store(path=str(touch(tmp_path / "store", "Radio11.mp4", "Gone.mp4")), holds="videos")
    source = Hdtf(path=str(hdtf_folder), splits=("RD",), store=store)
    assert {name: v.fault for name, v in by_entry(iter_videos([source], tmp_path)).items()} == {
        "Radio11_0": "",
        "Radio11_1": "bad crop: '0 9 0 9 0 8 0 8'",
        "Radio11_2": "missing crop",
        "Radio24": "missing span",
        "Gone_2": "missing span",
    }


def test_hdtf_clips_that_are_cut_and_cropped_already_are_taken_whole(
    hdtf_folder: Path, tmp_path: Path
):
    store = Store(path=str(touch(tmp_path / "store", "Radio11_1.mp4")))
    source = Hdtf(path=str(hdtf_folder), splits=("RD",), store=store)
    faults = {v.entry: v.fault for v in iter_videos([source], tmp_path)}
    assert faults == {"Radio11_0": "missing file", "Radio11_1": "", "Radio24": "missing span"}


def test_vfhq_text_files_give_frames_and_a_crop(tmp_path: Path):
    meta = tmp_path / "meta"
    meta.mkdir()
    good = "Clip+-3fEHqQ_a+b+P0+C1+F1537-1825"
    text = "VID -3fEHqQ_a+b\nH 1080\nW 1920\nFPS 25.0\nCROP 516 12 1204 700\n"
    (meta / f"{good}.txt").write_text(text)
    (meta / f"{good}0.txt").write_text(text.replace("CROP", "BOX"))
    (meta / "Clip+x+P0+C1+F5-90.txt").write_text("H 1080\nW 1920\n")
    (meta / "notes.txt").write_text("hello")
    store = Store(path=str(touch(tmp_path / "store", "-3fEHqQ_a+b.mp4")), holds="videos")
    videos = by_entry(iter_videos([Vfhq(path=str(meta), store=store)], tmp_path))
    clip = videos[good]
    assert (clip.t0_s, clip.t1_s) == (1537 / 25, 1825 / 25)
    assert clip.crop == (516.0, 12.0, 1204.0, 700.0) and clip.crop_frame == (1920.0, 1080.0)
    assert clip.source_id == "vfhq/-3fEHqQ_a+b"
    assert videos[f"{good}0"].fault == "missing crop"
    assert videos["Clip+x+P0+C1+F5-90"].fault == "bad row: no number FPS"
    assert videos["notes"].fault.startswith("bad row: the name is not")


def test_vfhq_pictures_at_another_rate_are_other_content_of_the_same_clip(tmp_path: Path):
    meta, name = tmp_path / "meta", "Clip+x+P0+C0+F0-50"
    meta.mkdir()
    (meta / f"{name}0.txt").symlink_to(meta / "nowhere")
    store = Store(path=str(touch(tmp_path / "store", f"{name}/0.png")), pattern="{name}")
    found = []
    for rate in ("25.0", "30.0", "inf"):
        (meta / f"{name}.txt").write_text(f"H 9\nW 9\nFPS {rate}\nCROP 0 0 9 9\n")
        found.append(by_entry(iter_videos([Vfhq(path=str(meta), store=store)], tmp_path)))
    first, second, third = (videos[name] for videos in found)
    assert first.video_id == second.video_id and first.fingerprint != second.fingerprint
    assert "fps" not in third.uri
    whole = Store(path=store.path, holds="videos")
    unreadable = by_entry(iter_videos([Vfhq(path=str(meta), store=whole)], tmp_path))[f"{name}0"]
    assert unreadable.fault.startswith("bad row: manifest ")


def test_celebv_hq_boxes_are_fractions(tmp_path: Path):
    def clip(start: object = 81.62, **box: float) -> dict[str, object]:
        duration = {"start_sec": start, "end_sec": 86.17}
        return {"ytb_id": "M2Ohb0FAaJU", "duration": duration, "bbox": box or None}

    box = {"top": 0.0, "bottom": 0.8815, "left": 0.1964, "right": 0.6922}
    clips = {
        "M2Ohb0FAaJU_1": clip(**box),
        "M2Ohb0FAaJU_2": clip(),
        "M2Ohb0FAaJU_3": clip(None, **box),
        "M2Ohb0FAaJU_4": clip(99.0, **box),
        "M2Ohb0FAaJU_5": "nothing",
    }
    manifest = tmp_path / "celebvhq_info.json"
    manifest.write_text(json.dumps({"meta_info": {}, "clips": clips}))
    store = Store(path=str(touch(tmp_path / "store", "M2Ohb0FAaJU.mp4")), holds="videos")
    videos = by_entry(iter_videos([CelebvHq(manifest=str(manifest), store=store)], tmp_path))
    good = videos["M2Ohb0FAaJU_1"]
    assert (good.t0_s, good.t1_s, good.fault) == (81.62, 86.17, "")
    assert (good.crop, good.crop_frame) == ((0.1964, 0.0, 0.6922, 0.8815), (1.0, 1.0))
    assert [videos[f"M2Ohb0FAaJU_{k}"].fault.partition(":")[0] for k in (2, 3, 4, 5)] == [
        "missing crop", "bad row", "bad timestamp", "bad row"
    ]  # fmt: skip


TALKVID = {
    "id": "videovideoTr6MMsoWAog-scene1-scene1",
    "height": 1080,
    "width": 1920,
    "fps": 24.0,
    "start-time": 0.1,
    "start-frame": 0,
    "end-time": 5.141666666666667,
    "end-frame": 121,
    "durations": "5.042s",
    "info": {"Person ID": "597", "Video Link": "https://www.youtube.com/watch?v=Tr6MMsoWAog"},
    "description": "An older man in a suit.",
    "dover_scores": 8.9,
    "cotracker_ratio": 0.927,
    "head_detail": {"scores": {"avg_movement": 97.9, "min_orientation": 73.3}},
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_talkvid_comes_as_lines_or_as_a_list(suffix: str, tmp_path: Path):
    rows = [TALKVID, TALKVID | {"id": "b", "end-time": None}, TALKVID | {"id": "c", "info": {}}]
    manifest = tmp_path / f"talkvid.{suffix}"
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)) + "\n{\n"
    manifest.write_text(BOM + text, encoding="utf-8")
    store = Store(path=str(touch(tmp_path / "store", "Tr6MMsoWAog.mp4")), holds="videos")
    listed = list(iter_videos([TalkVid(manifests=(str(manifest),), store=store)], tmp_path))
    videos = by_entry(listed)
    good = videos["videovideoTr6MMsoWAog-scene1-scene1"]
    assert (good.t0_s, good.t1_s) == (0.1, TALKVID["end-time"])
    assert good.source_id == "talkvid/Tr6MMsoWAog" and good.caption == "An older man in a suit."
    assert good.imported_scores == {
        "talkvid.dover": 8.9,
        "talkvid.cotracker_ratio": 0.927,
        "talkvid.avg_movement": 97.9,
        "talkvid.min_orientation": 73.3,
    }
    assert videos["b"].fault.startswith("bad timestamp")
    assert videos["c"].fault.startswith("bad row: KeyError")
    assert (suffix == "json") or videos["line 4"].fault == "bad row: line 4 has no id"


def test_the_generic_format_tells_its_own_origin(tmp_path: Path):
    good = {
        "source_id": "film-1",
        "dataset": "ours",
        "uri": "sub/-a b#1.mp4",
        "t0": "0:00:01.5",
        "t1": 4,
        "bbox": [0, 0.25, 0.5, 1],
        "caption": "Rain.",
        "license": "CC0",
        "mixture": "anime",
        "imported_scores": {"quality": 3},
    }
    absolute = str(touch(tmp_path / "elsewhere", "c.mp4") / "c.mp4")
    rows = [
        good,
        good | {"uri": absolute, "mixture": None, "bbox": None},
        good | {"uri": "gone.mp4"},
        good | {"uri": "x1.mp4", "license": ""},
        good | {"uri": "x2.mp4", "bbox": [0, 0, 700, 700]},
        good | {"uri": "x3.mp4", "t0": 9},
        good | {"uri": "x4.mp4", "start": 9},
        good | {"uri": "../x5.mp4"},
        good | {"uri": "x6.mp4", "mixture": "cartoon"},
    ]
    manifest = touch(tmp_path, "sub/-a b#1.mp4") / "clips.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n\nno json\n")
    listed = list(iter_videos([JsonLines(manifests=(str(manifest),), mixture="general")], tmp_path))
    videos = by_entry(listed)
    video = videos["sub/-a b#1.mp4"]
    assert (video.t0_s, video.t1_s, video.crop) == (1.5, 4.0, (0.0, 0.25, 0.5, 1.0))
    assert (video.source_id, video.license, video.mixture) == ("ours/film-1", "CC0", "anime")
    assert video.imported_scores == {"ours.quality": 3.0}
    assert Path(video.path).is_file() and video.fault == ""
    assert videos[absolute].mixture == "general" and videos[absolute].fault == ""
    reasons = [
        "missing file",
        "bad row: line 4 of clips.jsonl lacks license",
        "bad crop: [0, 0, 700, 700] are no fractions of the frame",
        "bad timestamp: 9 to 4 s",
        "bad row: line 7 of clips.jsonl has unknown fields start",
        "bad row: '../x5.mp4' leads out of the store",
        "bad row: line 9 of clips.jsonl has the mixture 'cartoon'",
    ]
    assert [video.fault for video in listed[2:9]] == reasons
    assert listed[9].fault.startswith("bad row: line 10 of clips.jsonl lacks source_id")


def read_lines(tmp_path: Path, *rows: object) -> list[Video]:
    base = {"source_id": "s", "dataset": "ours", "license": "CC0"}
    texts = [row if isinstance(row, str) else json.dumps(base | row) for row in rows]  # type: ignore[operator]
    (tmp_path / "clips.jsonl").write_text("\n".join(texts))
    source = JsonLines(manifests=(str(tmp_path / "clips.jsonl"),), mixture="general")
    return list(iter_videos([source], tmp_path))


def test_a_bad_line_takes_no_other_line_of_its_file_with_it(tmp_path: Path):
    touch(tmp_path, "a.mp4")
    spans = [{"t0": "x"}, {"t0": 9, "t1": 4}, {"t0": 9, "t1": 4}, {}, {}]
    videos = read_lines(tmp_path, *({"uri": "a.mp4"} | span for span in spans))
    faults = ["bad timestamp: 'x'", "bad timestamp: 9 to 4 s", "bad timestamp: 9 to 4 s", ""]
    assert [video.fault for video in videos] == faults  # the last line repeats the good one
    outside = read_lines(tmp_path, *({"uri": "../a.mp4", "t0": start} for start in range(2)))
    assert len(outside) == 2


def test_imported_scores_cannot_pass_for_our_own(tmp_path: Path):
    touch(tmp_path, "a.mp4")
    (video,) = read_lines(
        tmp_path, {"uri": "a.mp4", "dataset": "faces", "imported_scores": {"single_share": 1}}
    )
    assert video.fault == "bad row: line 1 of clips.jsonl has the dataset 'faces', a scorer's name"
    assert video.imported_scores == {}


@pytest.mark.parametrize(
    "uri",
    [
        "a.mp4/b",
        "x" * 256,
        "\ud83d",
        "file://[x/b.mp4",
        "s3://bucket",
        "s3:///x.mp4",
        "s3:////b/x.mp4",
    ],
)
def test_an_address_that_no_file_can_have_is_one_missing_file(uri: str, tmp_path: Path):
    touch(tmp_path, "a.mp4")
    bad, good = read_lines(tmp_path, {"uri": uri}, {"uri": "a.mp4"})
    assert (bad.fault, good.fault) == ("missing file", "")
    assert videos_from_table(videos_to_table([bad, good])) == [bad, good]


def test_half_a_character_is_replaced_and_whole_ones_are_kept(tmp_path: Path):
    touch(tmp_path, "a.mp4")
    (video,) = read_lines(tmp_path, {"uri": "a.mp4", "caption": 'A "cat" \U0001f600 é \ud83d'})
    assert video.caption == 'A "cat" \U0001f600 é ?'
    assert videos_from_table(videos_to_table([video])) == [video]


def test_numbers_and_nesting_beyond_all_bounds_are_faults(tmp_path: Path):
    line = '{"source_id": "s", "dataset": "d", "license": "l", "uri": "a.mp4", "t0": %s}'
    videos = read_lines(tmp_path, line % ("9" * 400), line % ("9" * 5000), "[" * 100_000)
    assert [v.fault.partition(":")[0] for v in videos] == ["bad timestamp"] * 2 + ["bad row"]


def inter4k(folder: Path, policy: str) -> Inter4K:
    return Inter4K.model_validate({"path": folder, "policy": policy, "num_clips": 3})


def test_inter4k_counts_the_files_that_are_not_there(tmp_path: Path):
    folder = touch(tmp_path / "60fps" / "UHD", "1.mp4", "3.mp4")
    videos = list(iter_videos([inter4k(folder, "bucket-117")], tmp_path))
    assert [video.fault for video in videos] == ["", "missing file", ""]
    assert videos[0].source_id == "inter4k/1" and videos[0].license == "CC BY-NC-SA 4.0"


def test_inter4ks_policy_is_an_explicit_choice(tmp_path: Path):
    folder = touch(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    slow = list(iter_videos([inter4k(folder, "stride-2")], tmp_path))
    assert {video.time_scale for video in slow} == {1.25}
    out = list(iter_videos([inter4k(folder, "reject")], tmp_path))
    assert all(video.fault.startswith("left out: Inter4K") for video in out)
    with pytest.raises(ValidationError, match="policy"):
        Inter4K.model_validate({"path": str(folder)})
    long_bucket = {"num_frames": 129}
    with pytest.raises(ValidationError, match=r"set bucket\.num_frames to 117"):
        DataConfig.model_validate(
            {"sources": [inter4k(folder, "bucket-117")], "bucket": long_bucket}
        )
    DataConfig.model_validate({"sources": [inter4k(folder, "stride-2")], "bucket": long_bucket})
    tall, wide = {"num_frames": 129, "height": 112}, {"num_frames": 117, "width": 112}
    films = {"sources": [inter4k(folder, "bucket-117")]}
    DataConfig.model_validate(films | {"bucket": tall, "other_buckets": [wide]})
    with pytest.raises(ValidationError, match="the bucket 129x64x112@24 asks for"):
        DataConfig.model_validate(
            films | {"bucket": tall, "other_buckets": [wide | {"num_frames": 129}]}
        )


@pytest.mark.parametrize("pattern", ["clip.mp4", "{id}.mp4", "{name", "{}.mp4"])
def test_a_pattern_that_names_no_clip_is_refused(pattern: str):
    with pytest.raises(ValidationError, match="has to hold"):
        Store(path="/clips", pattern=pattern)


def test_rows_survive_the_way_through_arrow(koala_manifest: str, tmp_path: Path):
    store = Store(path=str(touch(tmp_path / "store", "-KuN4XkUQBI.mp4")), holds="videos")
    videos = list(iter_videos([Koala(manifests=(koala_manifest,), store=store)], tmp_path))
    assert videos_from_table(videos_to_table(videos)) == videos
