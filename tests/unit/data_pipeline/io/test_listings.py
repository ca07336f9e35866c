"""What is made of a listing once it is here."""

import pyarrow as pa
import pytest

from magicdistill.data_pipeline.io import listings
from magicdistill.data_pipeline.sources.folder import Folder


def test_a_range_is_halved_between_its_ends() -> None:
    assert listings._middle("abc", listings.LAST) == "p"
    assert listings._middle("part_000", "q") == "pp"
    assert listings._middle("a\x7f", "b") == "" == listings._middle("é", listings.LAST)


def test_names_are_looked_up_in_any_order_and_number() -> None:
    names = [f"n{i}" for i in range(1000)]
    table = pa.table({"name": names, "state": [n[1:] for n in names]}, schema=listings.SCHEMA)
    listing = listings.Listing(table)
    asked = pa.array(["n7", None, "n999", "gone", "n0", "n7"])
    assert listing.states(asked).to_pylist() == ["7", None, "999", None, "0", "7"]
    empty = listings.Listing(table.slice(0, 0))
    assert empty.states(asked).to_pylist() == [None] * 6


def test_a_listing_has_another_fingerprint_if_anything_of_it_differs() -> None:
    def fingerprint(names: list[str], states: list[str], first: int = 0) -> str:
        table = pa.table({"name": names, "state": states}, schema=listings.SCHEMA)
        return listings.Listing(table.slice(first)).fingerprint()

    usual = fingerprint(["ab", "c"], ["1", "2"])
    assert fingerprint(["x", "ab", "c"], ["0", "1", "2"], first=1) == usual
    others = [(["a", "bc"], ["1", "2"]), (["ab", "c"], ["1", "3"]), (["ab"], ["1"]), ([], [])]
    assert len({usual, *(fingerprint(*other) for other in others)}) == 5


def test_names_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = listings._hashes
    monkeypatch.setattr(listings, "_hashes", lambda names: hashes(names) % 3)
    names = [f"n{i}" for i in range(20)]
    table = pa.table({"name": names, "state": names}, schema=listings.SCHEMA)
    asked = [*names, "gone"]
    assert listings.Listing(table).states(pa.array(asked)).to_pylist() == [*names, None]


def test_the_age_at_its_default_does_not_rename_what_recipes_made() -> None:
    fields = Folder(path="s3://bucket/kept", license="", mixture="general").model_dump()
    assert "listing_max_age_h" not in fields
    source = Folder(path="x", license="", mixture="general", listing_max_age_h=0)
    assert Folder.model_validate(source.model_dump()) == source
