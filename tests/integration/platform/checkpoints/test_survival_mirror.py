"""Checkpoints in a bucket: a server of S3's protocol, over HTTP."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import torch
from torch import nn

from magicdistill.platform.checkpoints import s3_mirror
from magicdistill.platform.checkpoints.checkpoint_folder import COMMITTED
from magicdistill.platform.checkpoints.checkpoints import Checkpoints, DamagedError
from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import TorchEngine
from tests.s3_server import serve_s3

BUCKET, RUN = "checkpoints", "a-run"
STATE = "net/rank-00000.safetensors"


@pytest.fixture(autouse=True)
def no_connection_of_the_test_before() -> None:
    """s3fs keeps its instances, and these the address of a server that may be gone."""
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(s3) -> Iterator[Any]:
    service: Any = boto3.resource("s3")
    bucket = service.create_bucket(Bucket=BUCKET)
    yield bucket
    bucket.objects.delete()
    bucket.delete()


def build() -> tuple[TorchEngine, Ema]:
    engine = TorchEngine(
        TorchEngineConfig(kind="torch"), nn.Linear(4, 4), OptimizerConfig(lr=0.1), 1
    )
    return engine, Ema("net", engine, 0.5)


def checkpoints(folder: Path, warnings: list[str] | None = None) -> Checkpoints:
    warn = print if warnings is None else warnings.append
    return Checkpoints(folder, 2, warn, f"s3://{BUCKET}/{RUN}")


@pytest.fixture
def weights(bucket, tmp_path) -> dict[int, torch.Tensor]:
    """Five saves of which two and the best are kept; the weights at each."""
    engine, ema = build()
    saved = checkpoints(tmp_path / "first")
    found = {}
    for cycle in range(1, 6):
        engine.backward(engine(torch.ones(2, 4)).square().mean(), last=True)
        engine.step()
        saved.save(cycle, {"net": engine}, ema, spared=lambda: {2})
        found[cycle] = engine.module.state_dict()["weight"].clone()
    return found


def restore(folder: Path, warnings: list[str] | None = None) -> tuple[int, torch.Tensor]:
    engine, ema = build()
    cycle = checkpoints(folder, warnings).load_latest({"net": engine}, ema)
    return cycle, engine.module.state_dict()["weight"]


def names(bucket) -> set[str]:
    return {entry.key.split("/")[1] for entry in bucket.objects.all()}


def test_the_bucket_holds_the_last_ones_and_the_best(weights, bucket, tmp_path):
    here = {path.name for path in checkpoints(tmp_path / "first").committed()}
    assert names(bucket) == here == {"cycle-0000002", "cycle-0000004", "cycle-0000005"}


def test_a_run_goes_on_from_the_bucket_where_its_folder_is_lost(weights, tmp_path):
    cycle, weight = restore(tmp_path / "second")
    assert cycle == 5 and torch.equal(weight, weights[5])


def test_a_damaged_file_comes_again_from_the_bucket(weights, tmp_path):
    file = tmp_path / "first" / "cycle-0000005" / STATE
    file.write_bytes(file.read_bytes()[:-7])
    cycle, weight = restore(tmp_path / "first")
    assert cycle == 5 and torch.equal(weight, weights[5])


def test_a_damaged_object_is_found_and_the_one_before_is_used(weights, bucket, tmp_path):
    content = bytearray(bucket.Object(f"{RUN}/cycle-0000005/{STATE}").get()["Body"].read())
    content[-9] ^= 1
    bucket.put_object(Key=f"{RUN}/cycle-0000005/{STATE}", Body=bytes(content))
    warnings: list[str] = []
    cycle, weight = restore(tmp_path / "second", warnings)
    assert cycle == 4 and torch.equal(weight, weights[4])
    assert "cycle-0000005" in warnings[0] and STATE in warnings[0]


def test_a_copy_that_was_cut_off_does_not_count(weights, bucket, tmp_path):
    bucket.Object(f"{RUN}/cycle-0000005/{COMMITTED}").delete()
    assert restore(tmp_path / "second")[0] == 4


def test_a_run_whose_copies_are_all_damaged_does_not_start_over(weights, bucket, tmp_path):
    for name in names(bucket):
        bucket.put_object(Key=f"{RUN}/{name}/{STATE}", Body=b"")
    with pytest.raises(DamagedError, match="new run"):
        restore(tmp_path / "second")


def test_a_stopped_mirror_costs_a_warning_and_no_training(monkeypatch, tmp_path):
    with serve_s3():
        address = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        engine, ema = build()
        warnings: list[str] = []
        saved = checkpoints(tmp_path / "first", warnings)
        saved.save(1, {"net": engine}, ema)
        assert warnings == []
    for name, value in address.items():
        monkeypatch.setenv(name, value)
    saved.save(2, {"net": engine}, ema)
    assert_warned(warnings, "cycle-0000002 is not mirrored")
    assert saved.names() == ["cycle-0000001", "cycle-0000002"]
    assert_warned(warnings, "what it holds does not count now")
    truncated = tmp_path / "first" / "cycle-0000002" / STATE
    truncated.write_bytes(truncated.read_bytes()[:-7])
    assert restore(tmp_path / "first", warnings)[0] == 1  # the damaged one cannot be fetched
    with pytest.raises(
        DamagedError, match=rf"the mirror s3://{BUCKET}/{RUN} failed.*--mirror null"
    ):
        saved.go_back(1, tmp_path / "aside")


@pytest.fixture
def never_started(monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_begins_and_goes_on_beside_a_mirror_that_was_never_there(never_started, tmp_path):
    warnings: list[str] = []
    start_s = time.monotonic()
    assert restore(tmp_path / "here", warnings)[0] == 0
    engine, ema = build()
    checkpoints(tmp_path / "here", warnings).save(3, {"net": engine}, ema)
    assert restore(tmp_path / "here", warnings)[0] == 3
    assert time.monotonic() - start_s < 20
    assert_warned(warnings[:2], "cycle-0000003 is not mirrored")


def test_a_run_that_has_lost_its_checkpoints_does_not_start_over_while_the_mirror_is_away(
    never_started, tmp_path
):
    engine, ema = build()
    lost = checkpoints(tmp_path / "lost", [])
    with pytest.raises(DamagedError, match=f"s3://{BUCKET}/{RUN} failed.*make it reachable"):
        lost.load_latest({"net": engine}, ema, has_saved=True)


def test_a_mirror_that_takes_connections_and_never_answers_is_not_waited_for(
    never_started, monkeypatch, tmp_path
):
    monkeypatch.setattr(s3_mirror, "READ_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        warnings: list[str] = []
        start_s = time.monotonic()
        assert checkpoints(tmp_path / "here", warnings).names() == []
        assert time.monotonic() - start_s < 15
    assert_warned(warnings, "what it holds does not count now")


def test_patience_with_a_mirror_is_less_than_two_minutes():
    tries = s3_mirror.ATTEMPTS**2  # s3fs repeats what botocore has repeated
    assert (s3_mirror.CONNECT_S + s3_mirror.READ_S) * tries < 120


def assert_warned(warnings: list[str], text: str) -> None:
    """The last warning says so, and names the mirror."""
    assert text in warnings[-1] and f"the mirror s3://{BUCKET}/{RUN} failed" in warnings[-1]


def test_going_back_leaves_later_copies_in_the_bucket_that_no_longer_count(
    weights, bucket, tmp_path
):
    aside = tmp_path / "aside"
    assert checkpoints(tmp_path / "first").go_back(2, aside) == ["cycle-0000004", "cycle-0000005"]
    assert {path.name for path in aside.iterdir()} == {"cycle-0000004", "cycle-0000005"}
    assert restore(tmp_path / "first")[0] == restore(tmp_path / "second")[0] == 2
    assert f"{RUN}/cycle-0000005/{STATE}" in {entry.key for entry in bucket.objects.all()}


def test_copies_in_the_bucket_are_neither_taken_nor_pruned(weights, bucket, tmp_path):
    for entry in bucket.objects.filter(Prefix=f"{RUN}/cycle-0000004/"):
        name = entry.key.replace("cycle-0000004", "cycle-0000009-backup")
        bucket.Object(name).copy({"Bucket": BUCKET, "Key": entry.key})
    engine, ema = build()
    saved = checkpoints(tmp_path / "first")
    saved.save(6, {"net": engine}, ema)
    assert names(bucket) == {"cycle-0000005", "cycle-0000006", "cycle-0000009-backup"}
    assert saved.names() == ["cycle-0000005", "cycle-0000006"]


def test_a_copy_that_is_made_again_has_no_files_of_the_one_before(weights, bucket, tmp_path):
    bucket.put_object(Key=f"{RUN}/cycle-0000005/net/rank-00007.safetensors", Body=b"old")
    engine, ema = build()
    checkpoints(tmp_path / "first").save(5, {"net": engine}, ema)
    keys = {entry.key for entry in bucket.objects.filter(Prefix=f"{RUN}/cycle-0000005/net/")}
    assert keys == {f"{RUN}/cycle-0000005/{STATE}", f"{RUN}/cycle-0000005/net/state.json"}
