"""Importers of tables: what they make of each value, and that columns at once mean rows alone."""

import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.manifests import read_rows
from magicdistill.data_pipeline.io.object_stores import Folder
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA, Video, videos_from_table
from magicdistill.data_pipeline.sources.base import SourceConfig
from magicdistill.data_pipeline.sources.columns import format_names
from magicdistill.data_pipeline.sources.data_sets import koala, openvid
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.data_sets.openvid import OpenVid
from magicdistill.data_pipeline.sources.data_sets.speakervid import SpeakerVid
from magicdistill.data_pipeline.sources.entries import (
    Entry,
    Fault,
    entries_to_table,
    parse_span,
)
from magicdistill.data_pipeline.sources.listing import iter_tables, iter_videos
from magicdistill.data_pipeline.sources.stores import Store, Terms, listed, listed_table
from magicdistill.data_pipeline.sources.table import Table


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as CSV, packed where the name says so."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def videos(source: SourceConfig, tmp_path: Path) -> list[Video]:
    return list(iter_videos([source], tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "['0:01:05.5', '0:02:00']",
        '["0:01:05.5","0:02:00"]',
        "('0:01:05.5', '0:02:00')",
        "('0:01:05.5', '0:02:00',)",
        "[65.5, 120.0]",
        "(65.5,120)",
        "65.5, 120",
        "['65,5', '120,0']",
        "65,5, 120,0",
        "'0:01:05,500', '0:02:00,000'",
        "0:01:05.5, 0:02:00",
        "1:05.5 - 2:00",
        "[0:01:05.5, 0:02:00]",
    ],
)
def test_spans_are_read_in_every_way_that_tables_write_them(text: str) -> None:
    assert parse_span(text) == (65.5, 120.0)


def test_minutes_may_be_more_than_an_hours() -> None:
    assert parse_span("['75:30', '0:130:00']") == (4530.0, 7800.0)


@pytest.mark.parametrize(
    "text",
    ["", "['0:01'", "1,2,3", "nan, 3", "-1, 3", "[3, 3]", "['a', 'b']", "9" * 400 + ", 3", "[]"],
)
def test_what_is_no_span_is_a_fault(text: str) -> None:
    with pytest.raises(Fault, match="bad timestamp"):
        parse_span(text)


KOALA = {
    "videoID": "-KuN4XkUQBI_1",
    "url": "u",
    "timestamp": "['0:00:28.028', '0:00:45.045']",
    "caption": "A cat.",
    "clarity_score": "0.9",
    "aesthetic_score": "4.58",
    "motion_score": "50.87",
    "video_training_suitability_score": "4.35",
}
ODD = [
    {"timestamp": "(28.028, 45.045)"},
    {"timestamp": "['75:00', '76:00']"},
    {"timestamp": "['00:10', '00:05']"},
    {"timestamp": "nonsense"},
    {"timestamp": "('0:00:28.028', '0:00:45.045')"},
    {"timestamp": "['0:00:2a.028', '0:00:45.045']"},
    {"timestamp": "['9:59:59.999', '0:00:45.045']"},
    {"timestamp": "['0:99:99.999', '9:00:00.001']"},
    {"timestamp": "['0:00:28.028' '0:00:45.045,']"},
    {"timestamp": "['0:00:\u0662.028', '0:00:45.045']"},
    {"clarity_score": "nan"},
    {"clarity_score": "", "motion_score": "NaN", "aesthetic_score": " none "},
    {"clarity_score": "inf"},
    {"clarity_score": "high"},
    {"videoID": "noindex"},
    {"videoID": "under_score_12"},
    {"caption": "\u3000 caf\u00e9 \n"},
    {"caption": "", "videoID": "../up_1"},
]


def koala_rows() -> list[dict[str, str]]:
    numbers = [{"videoID": f"film{i // 3}_{i}", "clarity_score": str(i / 7)} for i in range(40)]
    return [KOALA | change for change in (*numbers, *ODD, {})]


@pytest.mark.parametrize("holds", ["videos", "clips"])
def test_columns_at_once_mean_what_each_row_means_alone(holds: Any, tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "-KuN4XkUQBI.mp4", "film3.mp4", "film3_9.mp4")
    together = Koala(
        manifests=(write(tmp_path / "k.csv", koala_rows()),),
        store=Store(path=str(store), holds=holds),
    )
    folder = Folder(str(store))
    terms = Terms("koala-36m", together.license, "general", is_cut=holds == "clips")
    alone = [
        listed(
            entry,
            folder,
            together.store.file_pattern.format(name=entry.name, video=entry.video),
            terms,
        )
        for rows in read_rows(together.manifests[0], koala.COLUMNS)
        for row, line in zip(rows.columns.to_pylist(), rows.lines(), strict=True)
        for entry in [koala._entry(row, line, "")]
    ]
    found = videos(together, tmp_path)
    first: dict[str, Video] = {}
    for video in alone:
        first.setdefault(video.video_id, video)
    assert found == list(first.values())
    assert {video.fault.partition(":")[0] for video in found} > {"", "missing file", "bad score"}


def test_ids_of_videos_never_change(tmp_path: Path) -> None:
    """Ledgers know clips by these, made of the row of a manifest by earlier versions."""
    manifest = write(tmp_path / "k.csv", [KOALA, KOALA | {"videoID": "x_2", "timestamp": "no"}])
    for holds, ids in (
        ("videos", ["1c8f5bc706274164fc66", "7b0e7c7f96c23615edaa"]),
        ("clips", ["80167b7431053a034e10", "22bc41e9c8acb6d3e4d7"]),
    ):
        store = Store(path=str(tmp_path), holds=holds)  # type: ignore[arg-type]
        found = videos(Koala(manifests=(manifest,), store=store), tmp_path)
        assert [video.video_id for video in found] == ids


def test_a_score_that_nobody_measured_is_missing_and_the_row_is_kept(tmp_path: Path) -> None:
    manifest = write(
        tmp_path / "k.csv.gz",
        [KOALA | {"videoID": f"v_{i}", "clarity_score": text} for i, text in enumerate(
            ("nan", "NaN", "", " ", "None", "null", "N/A")
        )],
    )  # fmt: skip
    store = Store(path=str(touch(tmp_path / "store", "v.mp4")), holds="videos")
    found = videos(Koala(manifests=(manifest,), store=store), tmp_path)
    assert [video.fault for video in found] == [""] * 7
    assert {tuple(video.imported_scores) for video in found} == {
        ("koala.aesthetic", "koala.motion", "koala.suitability")
    }


def test_koala_as_parquet_and_json_lines_is_koala(tmp_path: Path) -> None:
    rows = [KOALA, KOALA | {"videoID": "b_2", "clarity_score": ""}]
    numbers = [
        {k: float(v) if k.endswith("score") and v else v or None for k, v in r.items()}
        for r in rows
    ]
    spans = [row | {"timestamp": ["0:00:28.028", "0:00:45.045"]} for row in numbers]
    pq.write_table(pa.Table.from_pylist(numbers), tmp_path / "k.parquet")
    pq.write_table(pa.Table.from_pylist(spans), tmp_path / "lists.parquet")
    (tmp_path / "k.jsonl").write_text("\n".join(map(json.dumps, spans)))
    store = Store(path=str(touch(tmp_path / "store", "-KuN4XkUQBI.mp4")), holds="videos")
    expected = videos(Koala(manifests=(write(tmp_path / "k.csv", rows),), store=store), tmp_path)
    for name in ("k.parquet", "lists.parquet", "k.jsonl"):
        assert videos(Koala(manifests=(str(tmp_path / name),), store=store), tmp_path) == expected


@pytest.mark.parametrize(
    "pattern",
    ["{name}.mp4", "{video}/{name}.webm", "{{}}{video}", "x{name!r}", "{name:>5}"],
)
def test_the_pattern_of_a_store_means_what_python_means_by_it(pattern: str) -> None:
    names, videos = ["a_1", "", "\u00e9 {x}"], ["a", "b", ""]
    both = zip(names, videos, strict=True)
    expected = [pattern.format(name=name, video=video) for name, video in both]
    assert format_names(pattern, pa.array(names), pa.array(videos)).to_pylist() == expected


NAMES = [
    "a.mp4", "-b #1%.mp4", "sub/\u00e9.mp4", "../x.mp4", "/x.mp4", "a/../b", "", "\ufffd.mp4",
    "nul\0.mp4", "pictures", "a..b.mp4", "gone.mp4",
]  # fmt: skip


def test_a_table_of_entries_is_listed_like_its_entries(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "-b #1%.mp4", "sub/\u00e9.mp4", "pictures/1.png", "a..b.mp4")
    folder, chance = Folder(str(tmp_path)), random.Random(0)
    faults = ["", "", "", "bad row: x", "bad row: y"]
    for terms in (
        Terms("d", "l", "general"),
        Terms("d", "l", "general", is_cut=True),
        Terms("d", "l", "general", split_shots=True, time_scale=1.25),
    ):
        names = [chance.choice(NAMES) for _ in range(200)]
        entries = [
            Entry(
                f"n{i}",
                f"v{i}",
                chance.choice([0.0, 1e-5, 28.028, 1e7 / 3, 3e9, chance.random() * 1e4]),
                chance.choice([None, 1e10, chance.random() * 1e4]),
                crop=chance.choice([(), (0.1, 0.25, 0.5, 1.0), (1.0, 2.0, 3e-7, 4.0)]),
                crop_frame=chance.choice([(), (0.0, 720.0)]),
                caption="c",
                imported_scores={"d.q": 1.5} if i % 2 else {},
                fps=chance.choice([0.0, 25.0]),
                fault=chance.choice(faults),
                span_fault=chance.choice(faults),
            )
            for i in range(200)
        ]
        table = listed_table(entries_to_table(entries), folder, pa.array(names), terms)
        assert table.schema == VIDEO_SCHEMA
        expected = [listed(e, folder, name, terms) for e, name in zip(entries, names, strict=True)]
        assert videos_from_table(table) == expected


def test_videos_are_listed_once_over_all_tables_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magicdistill.data_pipeline.io.manifests.BLOCK_BYTES", 1 << 20)
    rows = [KOALA | {"videoID": f"v_{i}", "caption": "x" * 2000} for i in range(5000)]
    manifests = (write(tmp_path / "1.csv", rows), write(tmp_path / "2.csv", [*rows[::2], KOALA]))
    source = Koala(manifests=manifests, store=Store(path=str(tmp_path)))
    tables = list(iter_tables([source, source], tmp_path))
    names = [name for table in tables for name in table["entry"].to_pylist()]
    assert names == [*(row["videoID"] for row in rows), KOALA["videoID"]]
    assert all(table.schema == VIDEO_SCHEMA for table in tables) and len(tables) > 2


OPENVID = {
    "video": "---_iRTHryQ_13_0to241.mp4",
    "caption": "Rain, at night.",
    "aesthetic score": "5.1",
    "motion score": "3.25",
    "temporal consistency score": "0.99",
    "camera motion": "pan_left",
    "frame": "241",
    "fps": "24.0",
    "seconds": "10.04",
}


def test_openvid_rows_become_clips_of_their_films(tmp_path: Path) -> None:
    files = ("---_iRTHryQ_13_0to241.mp4", "celebv_abc_2_0.mp4", "IIvwqskxtdE_0.mp4", "x.mp4")
    rows = [
        OPENVID,
        OPENVID | {"video": files[1], "motion score": "", "aesthetic score": "nan"},
        OPENVID | {"video": files[2]},
        OPENVID | {"video": "gone_________1_2.mp4"},
        OPENVID | {"video": "x.mp4", "motion score": "fast"},
        OPENVID | {"video": ""},
        OPENVID | {"video": "../x.mp4"},
    ]
    source = OpenVid(
        manifests=(write(tmp_path / "OpenVid-1M.csv", rows),),
        store=Store(path=str(touch(tmp_path / "video", *files))),
    )
    found = videos(source, tmp_path)
    assert [video.fault for video in found] == [
        "", "", "", "missing file", "bad score: motion='fast'", "bad row: line 7 has no video",
        "bad row: '../x.mp4' leads out of the store",
    ]  # fmt: skip
    first, second, third = found[:3]
    assert (first.source_id, first.entry) == (
        "openvid-1m/---_iRTHryQ",
        files[0].removesuffix(".mp4"),
    )
    assert (first.caption, first.t1_s, first.mixture) == ("Rain, at night.", None, "general")
    assert first.imported_scores == {
        "openvid.aesthetic": 5.1,
        "openvid.motion": 3.25,
        "openvid.temporal_consistency": 0.99,
    }
    assert second.source_id == "openvid-1m/celebv_abc_2_0"
    assert second.imported_scores == {"openvid.temporal_consistency": 0.99}
    assert third.source_id == "openvid-1m/IIvwqskxtdE"


def test_openvid_rows_alone_are_what_they_are_together(tmp_path: Path) -> None:
    manifest = write(tmp_path / "o.csv", [OPENVID, OPENVID | {"video": "b.mp4"}])
    (rows,) = read_rows(manifest, openvid.REQUIRED, tuple(openvid.SCORES.values()))
    alone = [openvid._entry(row, 0, "") for row in rows.columns.to_pylist()]
    assert openvid._entries(rows) == entries_to_table(alone)


SPEAKER = {
    "num_frames": 294,
    "is_talking": 1,
    "clip_speaker_num": 1,
    "clear": 2221.807638888889,
    "video_name": "BK6_XIz6-ZE_1920x1080_full_video",
    "start": 297.25603333333333,
    "duration": 4.2,
    "bbox": [0.6, 0.06, 0.99, 0.91],
    "raw_video_height": 1080,
    "raw_video_width": 1920,
    "start_seconds": 289.6560333333333,
    "end_seconds": 301.4678333333333,
    "dover": 0.5581270269629535,
}
CLIP = "BK6_XIz6-ZE_1920x1080_full_video_042_None_01"


def archive(path: Path, members: dict[str, str]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(f"merged_anno/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return str(path)


def test_speakervid_archives_give_spans_and_boxes(tmp_path: Path) -> None:
    members = {
        f"{CLIP}.json": json.dumps(SPEAKER),
        "abc_1x1_full_video_0_A_00.json": json.dumps(SPEAKER | {"duration": None, "dover": None}),
        "abc_1x1_full_video_0_A_01.json": json.dumps(SPEAKER | {"bbox": [0.6, 0.06, 1.5, 2]}),
        "abc_1x1_full_video_0_A_02.json": "{",
        "readme.txt": "not one",
    }
    store = Store(path=str(touch(tmp_path / "store", "BK6_XIz6-ZE.mp4")), holds="videos")
    tar = archive(tmp_path / "tar_batch_0.tar.gz", members)
    found = videos(SpeakerVid(manifests=(tar,), store=store), tmp_path)
    assert [video.fault.partition(":")[0] for video in found] == [
        "",
        "bad row",
        "bad crop",
        "bad row",
    ]
    first = found[0]
    assert (first.t0_s, first.t1_s) == (SPEAKER["start"], 297.25603333333333 + 4.2)
    assert (first.crop, first.crop_frame) == ((0.6, 0.06, 0.99, 0.91), (1.0, 1.0))
    assert (first.source_id, first.entry) == ("speakervid-5m/BK6_XIz6-ZE", CLIP)
    assert first.imported_scores == {
        "speakervid.clear": 2221.807638888889,
        "speakervid.dover": 0.5581270269629535,
    }
    listed_rows = [SPEAKER | {"filename": f"{CLIP}.json"}]
    (tmp_path / "list.json").write_text(json.dumps(listed_rows))
    (tmp_path / "lines.jsonl").write_text(json.dumps(listed_rows[0]))
    for name in ("list.json", "lines.jsonl"):
        assert videos(SpeakerVid(manifests=(str(tmp_path / name),), store=store), tmp_path) == [
            first
        ]
    Path(tar).write_bytes(Path(tar).read_bytes()[:200])
    with pytest.raises(ValueError, match=r"tar_batch_0\.tar\.gz cannot be read to its end"):
        videos(SpeakerVid(manifests=(tar,), store=store), tmp_path)


OURS = {
    "path": "sub/-a b#1.mp4", "film": "film-1", "text": " Rain. ", "start": "1.5",
    "stop": "0:00:04",
    "q": "3", "terms": "CC0", "kind": "anime", "box": "[0, 0.25, 0.5, 1]",
}  # fmt: skip
COLUMNS = {
    "uri": "path", "source_id": "film", "caption": "text", "t0": "start", "t1": "stop",
    "score.quality": "q", "license": "terms", "mixture": "kind", "bbox": "box",
}  # fmt: skip


def ours(*manifests: str, **changes: Any) -> Table:
    fields = {"dataset": "ours", "columns": COLUMNS, "license": "ours alone", "mixture": "general"}
    return Table.model_validate(fields | {"manifests": manifests} | changes)


def test_a_recipe_names_the_columns_of_any_table(tmp_path: Path) -> None:
    absolute = str(touch(tmp_path / "elsewhere", "c.mp4") / "c.mp4")
    rows = [
        OURS,
        OURS | {"path": absolute, "kind": "", "box": "", "film": "", "terms": "", "q": "nan"},
        OURS | {"path": "sub/-a b#1.mp4", "start": "", "stop": "", "box": ""},
        OURS | {"path": "gone.mp4"},
        OURS | {"path": "x2.mp4", "box": "[0, 0, 700, 700]"},
        OURS | {"path": "x3.mp4", "start": "9"},
        OURS | {"path": "../x5.mp4", "box": ""},
        OURS | {"path": "x6.mp4", "kind": "cartoon"},
        OURS | {"path": ""},
        OURS | {"path": "http://x/y.mp4"},
        OURS | {"path": "x7.mp4", "q": "good"},
    ]
    touch(tmp_path, "sub/-a b#1.mp4")
    found = videos(ours(write(tmp_path / "m.csv", rows)), tmp_path)
    first, second, third = found[:3]
    assert (first.t0_s, first.t1_s, first.crop) == (1.5, 4.0, (0.0, 0.25, 0.5, 1.0))
    assert (first.source_id, first.license, first.mixture) == ("ours/film-1", "CC0", "anime")
    assert (first.caption, first.imported_scores) == ("Rain.", {"ours.quality": 3.0})
    assert (second.source_id, second.license) == (f"ours/{absolute}", "ours alone")
    assert (second.mixture, second.imported_scores, second.crop) == ("general", {}, ())
    assert (third.t0_s, third.t1_s, third.fault) == (0.0, None, "")
    assert [video.fault for video in found[:3]] == ["", "", ""]
    assert [video.fault for video in found[3:]] == [
        "missing file",
        "bad crop: '[0, 0, 700, 700]' are no fractions of the frame",
        "bad timestamp: 9 to 4 s",
        "bad row: '../x5.mp4' leads out of the store",
        "bad row: line 9 of m.csv has the mixture 'cartoon'",
        "bad row: line 10 of m.csv has no uri",
        "bad address: 'http://x/y.mp4' is at http://; copy it to s3:// or a folder",
        "bad score: quality='good'",
    ]


def test_a_table_without_some_columns_takes_the_recipes_word(tmp_path: Path) -> None:
    touch(tmp_path, "clips/7.mp4", "clips/8.mp4")
    table = pa.table({"id": [7, 8], "t": [[1.0, 2.5], [3.0, 4.0]], "aes": [None, 0.5]})
    pq.write_table(table, tmp_path / "m.parquet")
    columns = {"uri": "clips/{id}.mp4", "span": "t", "score.aes": "aes"}
    found = videos(ours(str(tmp_path / "m.parquet"), columns=columns), tmp_path)
    assert [(v.fault, v.t0_s, v.t1_s, v.imported_scores) for v in found] == [
        ("", 1.0, 2.5, {}), ("", 3.0, 4.0, {"ours.aes": 0.5})
    ]  # fmt: skip
    assert {(v.license, v.mixture) for v in found} == {("ours alone", "general")}
    assert found[0].source_id == "ours/clips/7.mp4"


def test_openhumanvids_tables_are_read_by_naming_their_columns(tmp_path: Path) -> None:
    row = {
        "clip_id": "f605b8e9", "path": "clips/part_001/f6/05/f605b8e9", "caption": "A man speaks.",
        "luminance_min": "20", "luminance_max": "180", "blur_min": "0.1", "blur_max": "0.4",
        "aesthetic": "5.5", "technical_score": "", "global_motion": "0.8", "": "",
    }  # fmt: skip
    touch(tmp_path, "clips/part_001/f6/05/f605b8e9.mp4")
    source = ours(
        write(tmp_path / "OpenHumanVid_part_001.csv", [row]),
        dataset="openhumanvid",
        mixture="portrait",
        columns={
            "uri": "{path}.mp4", "caption": "caption", "score.aesthetic": "aesthetic",
            "score.technical": "technical_score", "score.motion": "global_motion",
        },
    )  # fmt: skip
    (video,) = videos(source, tmp_path)
    assert (video.fault, video.caption) == ("", "A man speaks.")
    assert video.imported_scores == {"openhumanvid.aesthetic": 5.5, "openhumanvid.motion": 0.8}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"columns": {"caption": "c"}}, "name the column of `uri`"),
        ({"columns": {"uri": "a", "start": "b"}}, r"start is none of uri, .*score\.<name>"),
        ({"columns": {"uri": "a", "span": "b", "t0": "c"}}, "not both"),
        ({"columns": {"uri": "{a"}}, "uri '{a'"),
        ({"columns": {"uri": "{a!r}.mp4"}}, "without a format"),
        ({"dataset": "faces"}, "a scorer's name"),
    ],
)
def test_a_map_of_columns_that_means_nothing_is_refused(changes: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ours("m.csv", **changes)


def test_a_column_that_a_table_lacks_is_named(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv", [{"path": "a.mp4"}])
    with pytest.raises(ValueError, match=r"m\.csv lacks the columns box, film"):
        videos(ours(manifest), tmp_path)


def test_limits_may_name_scores_of_tables() -> None:
    limits = {"all": {"openvid.aesthetic": {"min": 5}}}
    source = {"kind": "openvid-1m", "manifests": ["m.csv"], "store": {"path": "clips"}}
    DataConfig.model_validate({"sources": [source], "policy": {"limits": limits}})
