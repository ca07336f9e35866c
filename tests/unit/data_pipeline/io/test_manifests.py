"""Tables as they are found: packed, in several formats, and with faults in single rows."""

import csv
import gzip
import io
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magicdistill.data_pipeline.io import manifests
from magicdistill.data_pipeline.io.manifests import read_rows
from magicdistill.models.paths import PathError

ROWS = [
    {"id": "a", "text": 'Says "hi",\nand\r\ngoes.', "score": "0.5"},
    {"id": "-b", "text": "\u00e9 \U0001f600", "score": ""},
    {"id": "c", "text": "", "score": "2"},
]


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def found(path: Path, *required: str, optional: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
    """Return line, fault and values of each row."""
    return [
        (line, fault, *row.values())
        for rows in read_rows(str(path), required, optional)
        for line, fault, row in zip(
            rows.lines(), rows.faults or [""] * 10**6, rows.columns.to_pylist(), strict=False
        )
    ]


LINES = "\n".join(map(json.dumps, ROWS)).encode()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (as_csv(ROWS), [4, 5, 6]),
        (gzip.compress(as_csv(ROWS)), [4, 5, 6]),
        (gzip.compress(as_csv(ROWS)[:20]) + gzip.compress(as_csv(ROWS)[20:]), [4, 5, 6]),
        (zstd(as_csv(ROWS)), [4, 5, 6]),
        (LINES, [1, 2, 3]),
        (b"\xef\xbb\xbf" + LINES, [1, 2, 3]),
        (gzip.compress(LINES), [1, 2, 3]),
        (zstd(LINES), [1, 2, 3]),
        (as_parquet(ROWS), [1, 2, 3]),
    ],
    ids=[
        "CSV",
        "CSV by gzip",
        "CSV by gzip in two parts",
        "CSV by Zstandard",
        "JSON lines",
        "JSON lines with a byte order mark",
        "JSON lines by gzip",
        "JSON lines by Zstandard",
        "Parquet",
    ],
)
def test_a_table_is_the_same_in_every_format(
    content: bytes, lines: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "manifest"
    path.write_bytes(content)
    expected = [
        (line, "", row["score"], row["id"], row["text"], None)
        for line, row in zip(lines, ROWS, strict=True)
    ]
    assert found(path, "score", "id", "text", optional=("more",)) == expected


HEAD = b"a,b,c\n"
SHORT = "bad row: line {} has not as many fields as the header"


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"1,2,3\n4,5\n6,7,8\n", [(2, "", "1"), (3, SHORT, "4"), (4, "", "6")]),
        (
            b'1,2,3\n4,"5\nx,6,7\n8,9,"z"\n',
            [(2, "", "1"), (3, SHORT, "4"), (4, "", "x"), (5, "", "8")],
        ),
        (b'1,"2\n\n2",\n\n4,5,6,7\n', [(4, "", "1"), (6, SHORT, "4")]),
        (b"1,\xff,3\n4,5,6", [(2, "", "1"), (3, "", "4")]),
        (b'1,5" wide,3\n4,a"b"c,6\n', [(2, "", "1"), (3, "", "4")]),
        (b'1,"2', [(2, SHORT, "1")]),
    ],
)
def test_a_broken_row_costs_no_other(
    body: bytes, rows: list[tuple[int, str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(HEAD + body)
    assert found(path, "a") == [(line, fault.format(line), a) for line, fault, a in rows]


def test_null_bytes_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"a,b\n1,x\0y\n\x002,z\n")
    with caplog.at_level(logging.WARNING):
        assert found(path, "a", "b") == [(2, "", "1", "xy"), (3, "", "2", "z")]
    assert f"{path}: 2 null bytes in it are left out" in caplog.text
    path.write_bytes(b'{"a": "1\0"}\n')
    assert found(path, "a") == [(1, "", "1")]
    path.write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(PathError, match=r"UTF-16"):
        found(path, "a")


def test_a_field_that_is_too_long_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    long = b"x" * (manifests.MAX_FIELD_CHARS + 1)
    path.write_bytes(HEAD + b"1,2,3\n4," + long + b",6\n7,8,9\n")
    line = "bad row: line 3 has a field of more than 1048576 characters"
    rows = [(line, fault, a) for line, fault, a, _ in found(path, "a", "b")]
    assert rows == [(2, "", "1"), (3, line, "4"), (4, "", "7")]


def test_pieces_of_a_file_end_where_rows_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[str(i), f'text "{i}"\n' * (i % 7), "x"] for i in range(500)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path = tmp_path / "m.csv"
    path.write_bytes(HEAD + text.getvalue().encode())
    expected = found(path, "a", "b", "c")
    assert [list(row[2:]) for row in expected] == rows
    for block in (50, 64, 301, 4096):
        monkeypatch.setattr(manifests, "BLOCK_BYTES", block)
        assert found(path, "a", "b", "c") == expected


def test_a_quote_that_nobody_closes_costs_its_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(manifests, "MAX_ROW_BYTES", 1 << 13)
    rows = [f"{i},text,x" for i in range(5000)]
    rows[1000] = '1000,"text,x'
    path = tmp_path / "m.csv"
    path.write_bytes(HEAD + "\n".join(rows).encode())
    result = found(path, "a")
    assert len(result) == 5000
    assert [row for row in result if row[1]] == [(1002, SHORT.format(1002), "1000")]


def test_a_line_without_end_takes_little_memory_and_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(manifests, "MAX_ROW_BYTES", 1 << 13)
    monkeypatch.setattr(manifests, "MAX_FIELD_CHARS", 1 << 11)
    path = tmp_path / "m.csv"
    path.write_bytes(HEAD + b"1,2,3\n4," + b"x" * (1 << 17) + b",6\n7,8,9\n")
    assert [(a, bool(fault)) for _, fault, a, _ in found(path, "a", "b")] == [
        ("1", False), ("4", True), ("7", False)
    ]  # fmt: skip


def test_what_ends_too_early_or_lacks_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    for content in (b"", b"id,text\n1,2\n", as_parquet(ROWS)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.csv lacks the columns b, c"):
            found(path, "c", "b")
    packed = gzip.compress(HEAD + b"".join(b"%d,2,3\n" % i for i in range(10**5)))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"m\.csv cannot be read to its end"):
        found(path, "a")
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        found(tmp_path / "none.csv", "a")
