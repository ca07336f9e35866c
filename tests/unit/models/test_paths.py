"""What a path of a user means."""

from pathlib import Path

import pytest

from magicdistill.models.paths import (
    PathError,
    local_path,
    location,
    tracking_store,
    working_directory,
)

HOME = {"HOME": "/home/ada", "WORK": "/scratch/ada", "BUCKET": "s3://faces"}
MEANT = [
    ("runs", "runs"),
    ("./runs", "./runs"),
    ("~/runs", "/home/ada/runs"),
    ("~", "/home/ada"),
    ("$HOME/runs", "/home/ada/runs"),
    ("${WORK}/runs", "/scratch/ada/runs"),
    ("file:///data/clips", "/data/clips"),
    ("file://localhost/data/clips", "/data/clips"),
    ("file:/data/my%20clips", "/data/my clips"),
    ("C:/runs", "C:/runs"),
    ("a:b/c", "a:b/c"),
    ("price$5.png", "price$5.png"),
    (Path("~/runs"), "/home/ada/runs"),
]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOME.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("given", "meant"), MEANT)
def test_a_path_is_expanded_everywhere_in_the_same_way(given: str, meant: str) -> None:
    for take in (local_path, location, working_directory):
        assert take(given) == meant
        assert take(take(given)) == meant


REFUSED = [
    ("s3://bucket/runs", "not an address"),
    (Path("s3://bucket/runs"), "not an address"),
    ("s3:/bucket/runs", "not an address"),
    ("gs://bucket/runs", "not an address"),
    ("https://example.org/x", "not an address"),
    ("$BUCKET/runs", "not an address"),
    ("file://nas/runs", "write file:///folder"),
    ("$NOWHERE/runs", "the variable NOWHERE is not set"),
    ("~nobody-of-this-name/runs", "there is no user of that name"),
    ("", "`.` is the current folder"),
    ("a\0b", "null character"),
]


@pytest.mark.parametrize(("given", "why"), REFUSED)
def test_what_is_no_local_path_is_refused_with_the_fix(given: str, why: str) -> None:
    with pytest.raises(PathError, match=why):
        local_path(given)


def test_an_object_store_is_taken_where_one_is_supported_and_no_other() -> None:
    assert location("s3://bucket/~x") == "s3://bucket/~x"
    assert location("$BUCKET/x") == "s3://faces/x"
    assert location(Path("s3://bucket/x")) == "s3://bucket/x"
    for address in ("gs://bucket/x", "az://x", "http://example.org"):
        scheme = address.partition(":")[0]
        with pytest.raises(PathError, match=f"{scheme}:// is not supported; give s3://"):
            location(address)
    assert working_directory("https://example.org/code.zip") == "https://example.org/code.zip"
    with pytest.raises(PathError, match="ftp:// is not supported; give https://, s3://"):
        working_directory("ftp://example.org/code.zip")


STORES = [
    ("http://mlflow:5000", "http://mlflow:5000"),
    ("postgresql+psycopg2://u@db/mlflow", "postgresql+psycopg2://u@db/mlflow"),
    ("databricks", "databricks"),
    ("sqlite:///~/mlflow.db", "sqlite:////home/ada/mlflow.db"),
    ("sqlite:///$WORK/mlflow.db", "sqlite:////scratch/ada/mlflow.db"),
    ("file:///data/mlflow.db", "sqlite:////data/mlflow.db"),
    ("~/mlflow.db", "sqlite:////home/ada/mlflow.db"),
]


@pytest.mark.parametrize(("given", "meant"), STORES)
def test_a_server_or_a_data_base_is_where_mlflow_keeps_runs(given: str, meant: str) -> None:
    assert tracking_store(given) == meant


@pytest.mark.parametrize(
    ("given", "why"),
    [("mlruns", "give sqlite:///mlruns/mlflow.db"), ("s3://bucket", "s3:// is not supported")],
)
def test_where_mlflow_keeps_no_runs_is_refused(given: str, why: str) -> None:
    with pytest.raises(PathError, match=why):
        tracking_store(given)
