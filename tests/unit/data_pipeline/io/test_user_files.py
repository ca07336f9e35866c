"""Files that a user names: texts in other encodings, binary files, unwritable places."""

from pathlib import Path

import pytest

from magicdistill.data_pipeline.io.object_stores import open_text
from magicdistill.data_pipeline.io.user_files import (
    demand_output_file,
    demand_output_folder,
    read_text,
)
from magicdistill.data_pipeline.sources.json_lines import JsonLines
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.models.paths import PathError


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes("\ufeffné\r\n".encode())
    assert read_text(path) == "né\r\n"


REFUSED = {
    "latin-1": ("ok\nn\xe9\n".encode("latin-1"), "line 2 is not UTF-8; save the file as UTF-8"),
    "utf-16": ("né".encode("utf-16"), "UTF-16"),
    "a video": (b"\0\0\0\x20ftypisom", "binary"),
    "a picture": (b"\xff\xd8\xff\xe0JFIF", "not UTF-8"),
    "a folder": (None, "directory"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_text_in_utf_8_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, why = REFUSED[kind]
    path = tmp_path / "list"
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(PathError, match=why) as refused:
        read_text(path)
    assert str(path) in str(refused.value)


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(PathError, match=r"gone\.txt: No such file"):
        read_text(tmp_path / "gone.txt")


def test_a_manifest_that_is_binary_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_bytes(b"PK\x03\x04\0\0")
    with pytest.raises(PathError, match=r"clips\.csv: a binary file"):
        open_text(str(tmp_path / "clips.csv"))
    with pytest.raises(PathError, match="give the manifest in it"):
        open_text(str(tmp_path))


def test_a_line_of_a_manifest_says_what_is_wrong_with_its_address(tmp_path: Path) -> None:
    line = '{{"source_id": "a", "dataset": "d", "uri": "{}", "license": "CC0"}}\n'
    manifest = tmp_path / "clips.jsonl"
    manifest.write_bytes(
        line.format("gs://bucket/a.mp4").encode() + line.format("b\xe9.mp4").encode("latin-1")
    )
    source = JsonLines(manifests=(str(manifest),), mixture="general")
    faults = [video.fault for video in iter_videos([source], tmp_path)]
    assert "gs://" in faults[0] and "copy it to s3:// or a folder" in faults[0]
    assert "save the manifest as UTF-8" in faults[1]


def test_an_output_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(PathError, match=rf"--out {tmp_path}: a folder; give the name of a file"):
        demand_output_file(tmp_path, "--out")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x.mp4", Path("/proc/nowhere/x.mp4")):
        with pytest.raises(PathError, match=r"--out .*give another folder"):
            demand_output_file(place, "--out")
    with pytest.raises(PathError, match=r"--to .*give another folder"):
        demand_output_folder(tmp_path / "file", "--to")
    demand_output_file(tmp_path / "new" / "video.mp4", "--out")
    assert [*(tmp_path / "new").iterdir()] == []
