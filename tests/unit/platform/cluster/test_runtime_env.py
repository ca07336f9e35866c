"""The environment of the workers, which Ray sets before their Python starts."""

import pytest

from magicdistill.platform.cluster.ray_cluster import runtime_env
from magicdistill.platform.config.sections import ClusterConfig

SEGMENTS = "expandable_segments:True"


def variables(gpus_per_worker: float) -> dict[str, str]:
    return runtime_env(ClusterConfig(gpus_per_worker=gpus_per_worker), joined=False)["env_vars"]


def test_workers_on_gpus_allocate_in_segments_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert variables(1)["PYTORCH_ALLOC_CONF"] == SEGMENTS
    assert "PYTORCH_ALLOC_CONF" not in variables(0)


def test_an_allocator_that_the_job_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    assert "PYTORCH_ALLOC_CONF" not in variables(1)
