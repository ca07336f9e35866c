"""Copies among clips: which of them stays, what is compared, and what a later run finds."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from magicdistill.data_pipeline.ledger import compared_values, near_pairs
from magicdistill.data_pipeline.ledger.duplicates import CLIPS, find_copies

LIMITS = 6.0, 0.98
Row = dict[str, object]


def clip(name: str, bits: np.ndarray | None = None, **changes: object) -> Row:
    """Return a row of a clip of a file and source of its own, with some columns changed."""
    phash = None if bits is None else np.packbits(bits).tobytes()
    facts = {"clip_id": name, "source_id": name, "uri": name, "content_hash": name}
    span = {"start": 0, "stop": 48, "crop": [], "time_scale": 1.0, "width": 96, "height": 64}
    return facts | span | {"phash": phash} | changes


def find(
    clips: Sequence[Row],
    held_out: Sequence[Row] = (),
    taken_down: Sequence[Row] = (),
    kept: Path | None = None,
    limits: tuple[float, float] = LIMITS,
) -> dict[object, tuple[object, ...]]:
    """Return for each copy its original, how it was found, and whether that is a reference."""
    db = duckdb.connect()
    names = "candidates", "held_out", "taken_down"
    for name, rows in zip(names, (clips, held_out, taken_down), strict=True):
        db.register(name, pa.Table.from_pylist(list(rows), schema=CLIPS))
    found = find_copies(db, *names, *limits, kept).to_pylist()
    assert len({row["clip_id"] for row in found}) == len(found)
    return {
        row["clip_id"]: (row["of_clip_id"], row["how"])
        + (("held out",) if row["is_held_out"] else ())
        + (("taken down",) if row["is_taken_down"] else ())
        for row in found
    }


def random_bits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (*shape, 512))


def flipped(bits: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return bits of which some that follow each other are flipped."""
    changed = bits.copy()
    changed[start : start + count] ^= 1
    return changed


BETTER_AND_WORSE = [
    ({"width": 128}, {"width": 96, "blur": 0.0}),
    ({"colour": 0.3, "blur": 0.9}, {"colour": 0.01, "blur": 0.1, "stop": 200}),
    ({"colour": None, "blur": 0.9}, {"colour": 0.01, "blur": 0.1}),
    ({"colour": 0.02, "blur": 0.1}, {"colour": 0.4, "blur": 0.2, "stop": 90}),
    ({"blur": None}, {"blur": 0.1}),
    ({"stop": 90}, {"stop": 48}),
    ({"source_id": "a"}, {"source_id": "b"}),
]


@pytest.mark.parametrize(("better", "worse"), BETTER_AND_WORSE)
def test_the_better_of_two_copies_stays(better: Row, worse: Row):
    bits = random_bits()
    for names in ("ab", "ba"):
        good, bad = clip(names[0], bits, **better), clip(names[1], bits, **worse)
        if "source_id" not in better:
            assert find([bad, good]) == {names[1]: (names[0], "pHash")}
    same = {"content_hash": "one", "stop": 48}
    good, bad = clip("x", None, **(better | same)), clip("y", None, **(worse | same))
    if "stop" not in better:
        assert find([good, bad]) == {"y": ("x", "the same file")}


def test_moments_of_one_source_are_no_copies_of_each_other():
    bits = random_bits()
    first = clip("a", bits, source_id="film")
    for other, found in (
        (clip("b", bits, source_id="film"), {}),
        (clip("c", flipped(bits, 0, 9), source_id="film", uri="a", start=48, stop=96), {}),
        (
            clip("c", flipped(bits, 0, 9), source_id="film", uri="a", start=24, stop=70),
            {"c": ("a", "pHash")},
        ),
        (clip("d", bits, source_id="film", uri="a", start=9, stop=40), {"d": ("a", "pHash")}),
        (clip("d", bits, source_id="z"), {"d": ("a", "pHash")}),
    ):
        assert find([first, other]) == found


def test_a_copy_of_a_copy_that_differs_from_the_original_stays():
    bits = random_bits()
    clips = [
        clip("large", bits, width=128),
        clip("middle", flipped(bits, 0, 40), width=100),
        clip("small", flipped(bits, 0, 80), width=96),
    ]
    assert find(clips) == {"middle": ("large", "pHash")}
    assert find(clips[1:]) == {"small": ("middle", "pHash")}


def test_embeddings_go_before_hashes():
    bits = np.zeros(512, dtype=int)
    vectors = np.array([[1, 0], [0.99, 0.1], [0.5, 0.8]], dtype=np.float16)
    clips = [
        clip(name, bits, embedding=vector.tobytes())
        for name, vector in zip("abc", vectors, strict=True)
    ]
    assert find([*clips, clip("d", bits), clip("e", bits)]) == {
        "b": ("a", "embedding"),
        "e": ("d", "pHash"),
    }


def test_hashes_of_different_frame_counts_are_not_compared():
    bits = np.zeros(512, dtype=int)
    assert find([clip("a", bits), clip("b", bits[:192]), clip("c", bits[:192])]) == {
        "c": ("b", "pHash")
    }


@pytest.mark.parametrize("exact", [True, False])
def test_hashes_are_found_up_to_the_limit(exact: bool, monkeypatch: pytest.MonkeyPatch):
    if not exact:
        monkeypatch.setattr(near_pairs, "EXACT", 0)
    rng = np.random.default_rng(1)
    bits = random_bits(300)
    for copy in range(100):  # at distances of 0 to 99 bits from an earlier clip
        bits[200 + copy] = bits[copy]
        bits[200 + copy, rng.permutation(512)[:copy]] ^= 1
    found = find([clip(f"{i:03d}", row) for i, row in enumerate(bits)])
    assert found == {f"{200 + n}": (f"{n:03d}", "pHash") for n in range(49)}


@pytest.mark.parametrize("exact", [True, False])
def test_a_mirror_image_is_a_copy_where_mirrored_hashes_are_known(
    exact: bool, monkeypatch: pytest.MonkeyPatch
):
    if not exact:
        monkeypatch.setattr(near_pairs, "EXACT", 0)
    face, back, *others = random_bits(12)
    image, mirror = np.concatenate([face, back]), np.concatenate([flipped(back, 9, 30), face])
    rest = [clip(f"{n}", np.concatenate(others[n : n + 2])) for n in range(0, 10, 2)]
    original = clip("a", image)
    assert find([original, clip("b", mirror), *rest]) == {"b": ("a", "pHash")}
    # Hashes of older ledgers have no mirror images; they are compared with both of a newer one.
    assert find([original, clip("b", flipped(face, 3, 30))]) == {"b": ("a", "pHash")}
    assert find([original, clip("b", flipped(back, 3, 30))]) == {"b": ("a", "pHash")}
    assert find([clip("a", face), clip("b", back)]) == {}
    assert find([original, clip("b", np.concatenate([others[0], back]))]) == {}


def test_what_was_taken_down_goes_before_what_is_held_out():
    bits = random_bits()
    near = clip("near", flipped(bits, 0, 40), width=900, source_id="film")
    cut = clip("cut", content_hash="film", start=40, stop=90)
    held_out = [clip("test", bits), clip("t", content_hash="film")]
    taken_down = [clip("gone", bits, source_id="film"), clip("g", content_hash="film")]
    assert find([near, cut], held_out) == {
        "near": ("test", "pHash", "held out"),
        "cut": ("t", "the same file", "held out"),
    }
    assert find([near, cut], held_out, taken_down) == {
        "near": ("gone", "pHash", "taken down"),
        "cut": ("g", "the same file", "taken down"),
    }


def test_a_later_run_compares_new_values_with_all_and_old_ones_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compared: list[int] = []

    def counted(signatures: object, sources: np.ndarray, is_new: np.ndarray) -> np.ndarray:
        compared.append(int(is_new.sum()))
        return near_pairs.near_pairs(signatures, sources, is_new)  # type: ignore[arg-type]

    monkeypatch.setattr(compared_values, "near_pairs", counted)
    bits = random_bits(40)
    first = [clip(f"{n:02d}", row) for n, row in enumerate(bits[:20])]
    copies = [clip(f"c{n}", flipped(bits[n], 5, 40)) for n in range(3)]
    once = find([*first, *copies], kept=tmp_path)
    assert once == {f"c{n}": (f"{n:02d}", "pHash") for n in range(3)}
    assert find([*first, *copies], kept=tmp_path) == once
    more = [clip(f"{n:02d}", row) for n, row in enumerate(bits[20:], 20)]
    more += [clip(f"d{n}", flipped(bits[n], 90, 40)) for n in (0, 8, 30)]
    night = [*first, *copies, *more]
    found = find(night, kept=tmp_path)
    assert found == find(night)
    assert compared == [23, 0, 23, 46]
    # A value of which a second source turns up is new: moments of one source are not compared.
    film = [clip(f"m{n}", flipped(bits[0], 0, 9 * n), source_id="film") for n in range(2)]
    assert find(film, kept=tmp_path / "film") == {}
    again = clip("n", flipped(bits[0], 0, 9))
    assert find([*film, again], kept=tmp_path / "film") == find([*film, again])
    # Another limit is another question.
    assert find(night, kept=tmp_path, limits=(4.0, 0.98)) == {}


def test_what_was_compared_is_merged_into_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compared_values, "MAX_FILES", 2)
    near = [flipped(row, 0, n) for n, row in enumerate(random_bits(4))]
    clips = [clip(f"{n}", row) for n, row in enumerate([*random_bits(4), *near[1:]])]
    for count in range(3, 8):
        found = find(clips[:count], kept=tmp_path)
        assert len(list(tmp_path.rglob("*.parquet"))) <= 2
    assert found == {f"{n + 3}": (f"{n}", "pHash") for n in (1, 2, 3)}
