"""What torch and Ray are told about hangs has names that they know."""

import mmap
import os
from pathlib import Path

import pytest
import torch
from ray.train.v2._internal.callbacks.nccl_ras import NCCLRASCallback
from ray.train.v2._internal.constants import ENABLE_NCCL_HANG_DETECTOR_ENV_VAR

from magicdistill.platform.cluster.nccl_settings import (
    detector_variables,
    in_environment,
    worker_variables,
)

TORCH = Path(torch.__file__).parent


def torch_knows(name: str) -> bool:
    headers = TORCH / "include" / "torch" / "csrc" / "distributed" / "c10d"
    if any(f'"{name}"' in file.read_text() for file in headers.glob("*.hpp")):
        return True
    with (TORCH / "lib" / "libtorch_cpu.so").open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(name.encode()) >= 0


@pytest.mark.parametrize("name", worker_variables(Path("/run")))
def test_torch_knows_every_variable_of_a_worker(name: str) -> None:
    assert torch_knows(name) and not torch_knows(f"{name}_AND_MORE")


def test_flight_records_lie_in_the_folder_of_the_run() -> None:
    assert worker_variables(Path("/run"))["TORCH_FR_DUMP_TEMP_FILE"] == "/run/nccl-traces/rank-"


def test_no_cluster_file_overrides_how_torch_ends_a_hang() -> None:
    root = Path(__file__).parents[4]
    for file in (root / "cluster.yaml", root / "deploy" / "kuberay.yaml"):
        assert "TORCH_NCCL" not in file.read_text()


def test_rays_detector_observes_and_has_acted_before_torch_ends_the_workers() -> None:
    with in_environment(detector_variables(1200)):
        assert os.environ[ENABLE_NCCL_HANG_DETECTOR_ENV_VAR] == "1"
        detector = NCCLRASCallback()
    assert (detector._action, detector._confirm_duration_s) == ("observe", 600)
    assert ENABLE_NCCL_HANG_DETECTOR_ENV_VAR not in os.environ


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_NCCL_RAS_ACTION", "fail")
    with in_environment(detector_variables(1200)):
        assert NCCLRASCallback()._action == "fail"
    assert os.environ["RAY_TRAIN_NCCL_RAS_ACTION"] == "fail"
