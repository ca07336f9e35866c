"""Copies among clips: which of them stays, what is compared, and what a later run finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from magicdistill.data_pipeline.ledger import compared_values, near_pairs
from magicdistill.data_pipeline.ledger.duplicates import CLIPS, find_copies
from magicdistill.data_pipeline.ledger.signatures import hash_signatures

LIMITS = 6.0, 0.98
Row = dict[str, Any]


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


def test_what_was_taken_down_without_an_embedding_is_found_by_its_hash():
    bits = random_bits()
    one, other = (np.array(pair, np.float16).tobytes() for pair in ([1, 0], [0, 1]))
    clips = [
        clip("near", flipped(bits, 0, 40), embedding=one),
        clip("same", bits, embedding=other, source_id="near", uri="near"),
        clip("copy", bits, embedding=one, width=80),
        clip("far", flipped(bits, 0, 200), embedding=one, width=80),
        clip("again", flipped(bits, 0, 200), embedding=one, width=70),
    ]
    gone = clip("gone", bits, source_id="far")
    found = dict.fromkeys(("near", "same", "copy"), ("gone", "pHash", "taken down"))
    assert find(clips, (), [gone]) == found | {"again": ("far", "embedding")}
    # With an embedding of the same model, hashes are not looked at.
    assert find(clips, (), [gone | {"embedding": other}]) == {
        "same": ("gone", "embedding", "taken down"),
        **dict.fromkeys(("copy", "far", "again"), ("near", "embedding")),
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
    # What was away is compared with what came meanwhile.
    away = [clip for clip in night if clip["clip_id"] != "00"]
    twin = clip("e", flipped(bits[0], 60, 30), width=200)
    assert find([*away, twin], kept=tmp_path) == find([*away, twin])
    assert find([*night, twin], kept=tmp_path) == find([*night, twin])
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


def random_clips(count: int, seed: int) -> list[Row]:
    """Return clips of few files, looks and spans, so that many are copies in one way or another."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(0, 2, (count // 6, 512))
    vectors = rng.standard_normal((count // 6, 16))
    clips: list[Row] = []
    for number in range(count):
        look = int(rng.integers(len(looks)))
        bits = looks[look].copy()
        bits[rng.permutation(512)[: rng.choice([0, 9, 30, 48, 49, 60])]] ^= 1
        vector = vectors[look] + rng.standard_normal(16) * rng.choice([0, 0.1, 0.3])
        has = rng.random()
        film, file = f"s{rng.integers(count // 4)}", int(rng.integers(2))
        start = int(rng.integers(5)) * 20
        clips.append(
            clip(
                f"{number:04d}",
                bits if has < 0.6 else None,
                embedding=vector.astype(np.float16).tobytes() if has > 0.4 else None,
                source_id=film,
                uri=f"{film}/{file}",
                content_hash="" if rng.random() < 0.1 else f"{film}/{file}/{rng.integers(2)}",
                start=start,
                stop=start + int(rng.choice([20, 40])),
                crop=[0, 0, 9, 9] if rng.random() < 0.2 else [],
                width=int(rng.choice([64, 96])),
                blur=float(rng.choice([0.1, 0.2])),
                colour=(0.0, 0.3, None)[rng.integers(3)],
            )
        )
    return clips


def one_by_one(
    clips: Sequence[Row], held_out: Sequence[Row], taken_down: Sequence[Row]
) -> dict[object, tuple[object, ...]]:
    """Return what `find` returns, by comparing each clip with all better ones."""
    gone = [(one, ("taken down",)) for one in sorted(taken_down, key=rank)]
    references = [*gone, *((one, ("held out",)) for one in sorted(held_out, key=rank))]
    without = [(one, mark) for one, mark in gone if one["embedding"] is None]
    copies: dict[object, tuple[object, ...]] = {}
    left: list[Row] = []
    for one in sorted(clips, key=rank):
        same = [
            *((other, mark) for other, mark in references if overlap(one, other, "content_hash")),
            *((other, ()) for other in left if all(one[key] == other[key] for key in SPAN)),
        ]
        if one["content_hash"] and same:
            copies[one["clip_id"]] = (same[0][0]["clip_id"], "the same file", *same[0][1])
        else:
            left.append(one)
    for kind, is_embedded, before in (
        ("phash", True, without),
        ("embedding", True, references),
        ("phash", False, references),
    ):
        kept: list[tuple[Row, tuple[str, ...]]] = [*before]
        for one in left:
            if one["clip_id"] in copies or is_embedded != (one["embedding"] is not None):
                continue
            for other, mark in kept:
                neighbours = one["source_id"] == other["source_id"] and not overlap(
                    one, other, "uri"
                )
                if near(one[kind], other[kind], kind) and (mark or not neighbours):
                    how = "pHash" if kind == "phash" else kind
                    copies[one["clip_id"]] = (other["clip_id"], how, *mark)
                    break
            else:
                kept += [] if before is without else [(one, ())]
    return copies


SPAN = ("content_hash", "start", "stop", "crop", "time_scale")


def rank(one: Row) -> tuple[object, ...]:
    grey = one["colour"] is not None and one["colour"] < 0.02
    size, length = one["width"] * one["height"], one["stop"] - one["start"]
    return (-size, grey, one["blur"], -length, one["source_id"], one["clip_id"])


def overlap(one: Row, other: Row, file: str) -> bool:
    return (
        one[file] == other[file] and one["start"] < other["stop"] and other["start"] < one["stop"]
    )


def near(one: bytes | None, other: bytes | None, kind: str) -> bool:
    if one is None or other is None:
        return False
    if kind == "phash":
        pair = (np.frombuffer(blob, np.uint64) for blob in (one, other))
        return int(np.bitwise_count(np.bitwise_xor(*pair)).sum()) <= 48
    a, b = (np.frombuffer(blob, np.float16).astype(np.float32) for blob in (one, other))
    return bool(a @ b >= 0.98 * np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize(("exact", "seed"), [(True, 0), (False, 1), (False, 2)])
def test_copies_are_those_that_comparing_one_by_one_finds(
    exact: bool, seed: int, monkeypatch: pytest.MonkeyPatch
):
    if not exact:
        monkeypatch.setattr(near_pairs, "EXACT", 0)
    clips = random_clips(300, seed)
    groups = clips[60:], clips[30:60], clips[:30]
    found = find(*groups)
    assert found == one_by_one(*groups)
    assert len({of[1:] for of in found.values()}) > 6  # all ways of being a copy occur


@pytest.mark.parametrize("exact", [True, False])
def test_thousands_of_equal_and_nearly_equal_clips_are_copies_of_the_best(
    exact: bool, monkeypatch: pytest.MonkeyPatch
):
    """They would make 4 million pairs; all are of one rank but for their names."""
    if not exact:
        monkeypatch.setattr(near_pairs, "EXACT", 0)
    rng = np.random.default_rng(0)
    black, title = bytes(64), random_bits()
    clips = [clip(f"b{n:04d}") | {"phash": black} for n in range(1500)]
    clips += [clip(f"t{n:04d}", title ^ (rng.random(512) < 0.02)) for n in range(1500)]
    found = find(clips)
    assert set(found.values()) == {("b0000", "pHash"), ("t0000", "pHash")}
    assert len(found) == 2998


def test_as_many_pairs_at_the_limit_are_missed_as_the_plan_says(monkeypatch: pytest.MonkeyPatch):
    """So many may be missed here that they can be counted."""
    monkeypatch.setattr(near_pairs, "EXACT", 0)
    monkeypatch.setattr(near_pairs, "MISS", 0.2)
    rng = np.random.default_rng(0)
    bits = random_bits(8000)
    for one, other in zip(bits[:4000], bits[4000:], strict=True):
        other[:] = one
        other[rng.permutation(512)[:48]] ^= 1
    words = np.packbits(bits, axis=1).view(np.uint64)
    strings = hash_signatures(words, np.arange(8000, dtype=np.uint32), 6.0)
    plan = near_pairs.plan_bands(strings, 8000)
    assert 0.15 < plan.miss <= 0.2
    found = near_pairs.near_pairs(
        strings, np.arange(8000, dtype=np.uint64) + 1, np.ones(8000, bool)
    )
    assert abs(1 - len(found) / 4000 - plan.miss) < 4 * np.sqrt(plan.miss / 4000)
