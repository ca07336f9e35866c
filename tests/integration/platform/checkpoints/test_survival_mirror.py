"""Checkpoints in a bucket: a server of S3's protocol, over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from torch import nn

from magicdistill.platform.checkpoints.checkpoints import COMMITTED, Checkpoints, DamagedError
from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.training.ema import Ema
from magicdistill.platform.training.engine import TorchEngine

BUCKET, RUN = "checkpoints", "a-run"
STATE = "net/rank-00000.safetensors"


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
