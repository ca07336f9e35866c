"""Ill, failing and healthy runs say what they are."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import ray
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.cluster.worker_failures import TrainingError
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.prometheus import published
from magicdistill.platform.training.ray_trainer import fit
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import write_cache

ROOT = Path(__file__).parents[4]


@pytest.fixture
def cache(tmp_path: Path) -> AnyPath:
    return write_cache(tmp_path / "cache", (16, 2, 4, 4), num_rows=4)


def create(tmp_path: Path, num_readers: int = 0, **health: Any) -> RunDirectory:
    """A run of one worker whose generator learns far too fast from its third cycle on."""
    values = load_recipe("portrait-tiny-smoke").model_dump(exclude={"engine"})
    values["schedule"] |= {"num_cycles": 6, "sample_every": 1, "keep_checkpoints": 1}
    values["schedule"]["optimizers"]["generator"]["lr"] = 1.0
    values["data"]["num_readers"] = num_readers
    values["method"] |= {"num_fake_updates": 1, "warmup_cycles": 2}
    values["cluster"] |= {"num_workers": 1, "max_failures": 0}
    signs = ("dynamic_degree", "saturation", "contrast", "temporal_variance", "drift")
    unlimited: dict[str, Any] = {name: {} for name in (*signs, "real_distance")}
    values["health"] = {"grace_cycles": 0, **unlimited, **health}
    return RunDirectory.create(
        tmp_path / "runs", Recipe.model_validate(values | {"engine": {"kind": "torch"}})
    )


def train(run: RunDirectory, cache: Path) -> None:
    Worker(run, cache, cache, rank=0, world_size=1).run_all()


def test_a_run_that_collapses_is_stopped_with_its_best_checkpoint_kept(
    tmp_path: Path, cache: Path
) -> None:
    run = create(tmp_path, fake_score={"max": 4})
    train(run, cache)
    rows = list(run.metrics())
    verdict = run.health_report_path.read_text()
    assert f"unhealthy at cycle {len(rows)}: critic/fake_score is" in verdict
    assert "above 4, for 2 values in a row; the best checkpoint is that of cycle" in verdict
    assert rows[-1]["critic/fake_score"] > 4 > rows[1]["critic/fake_score"]
    best = int((run.path / "best.txt").read_text())
    assert rows[best - 1]["health/drift"] == min(row["health/drift"] for row in rows[:-1])
    names = [path.name for path in run.checkpoints.glob("cycle-*")]
    assert sorted(names) == sorted({f"cycle-{best:07d}", f"cycle-{len(rows) - 1:07d}"})
    assert not (run.path / "model").exists()


def test_a_run_that_only_keeps_the_best_goes_on_and_says_so(tmp_path: Path, cache: Path) -> None:
    run = create(tmp_path, fake_score={"max": 4}, action="keep-best")
    train(run, cache)
    rows, progress = list(run.metrics()), run.progress_path.read_text()
    assert len(rows) == 6 and not run.health_report_path.exists()
    assert progress.count("critic/fake_score is") == 1
    for row in rows:
        parts = {name: value for name, value in row.items() if name.startswith("seconds/")}
        assert {"data", "forward", "backward", "update"} <= {n.split("/")[1] for n in parts}
        assert min(parts.values()) >= 0 and max(parts.values()) < row["seconds_per_cycle"]
    assert "time went to" in progress


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with ray_cluster(ClusterConfig(logical_cpus=4, dashboard=False)):
            yield


def exported() -> str:
    """Return what Prometheus reads from the node."""
    node = ray.nodes()[0]
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urlopen(page, timeout=30) as answer:
        return answer.read().decode()


def test_metrics_are_on_rays_endpoint(cluster: None, tmp_path: Path) -> None:
    run = create(tmp_path)
    with published(run, every_s=0.1):
        run.append_metrics(6, {"generator/dmd": 1.0})
        run.append_metrics(7, {"generator/dmd": 0.25})
        found: list[str] = []
        until_s = time.monotonic() + 60
        while len(found) < 2 and time.monotonic() < until_s:
            time.sleep(0.5)
            found = [line for line in exported().splitlines() if line.startswith("ray_magic")]
    assert sorted(line.rpartition(" ")[2] for line in found) == ["0.25", "7.0"]
    assert all(f'run="{run.path.name}"' in line for line in found)
    assert any('metric="generator/dmd"' in line for line in found)


@pytest.mark.long
def test_grafanas_queries_find_what_a_run_exports(
    cluster: None, tmp_path: Path, cache: Path
) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "magicdistill.json").read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    wanted = [selector for query in queries for selector in selectors(query)]
    assert len(wanted) > 15
    run = create(tmp_path, num_readers=1)
    with published(run, every_s=0.1):
        train(run, cache)
        missing, until_s = wanted, time.monotonic() + 60
        while missing and time.monotonic() < until_s:
            time.sleep(1)
            found = samples(exported())
            missing = [one for one in missing if not any(one.selects(*labels) for labels in found)]
    gpus = [f"ray_{name}" for name in METRICS_GAUGES if name.startswith(("node_gpus", "node_gram"))]
    assert [selector for selector in missing if selector.name not in gpus] == []


@dataclass(frozen=True)
class Selector:
    """A metric's name and what its labels have to be, of a query of Prometheus."""

    name: str
    labels: tuple[tuple[str, str, str], ...]

    def selects(self, name: str, labels: dict[str, str]) -> bool:
        """Tell whether a sample is among what the query asks for."""
        if name != self.name:
            return False
        for label, operator, value in self.labels:
            exactly = value if "~" in operator else re.escape(value)
            matches = re.fullmatch(exactly.replace("$run", ".+"), labels.get(label, "")) is not None
            if matches == operator.startswith("!"):
                return False
        return True


LABEL = r'(\w+)(=~|!~|!=|=)"([^"]*)"'


def selectors(query: str) -> list[Selector]:
    found = re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", query)
    return [Selector(name, tuple(re.findall(LABEL, labels))) for name, labels in found]


def samples(page: str) -> list[tuple[str, dict[str, str]]]:
    found = re.findall(r"^(ray_\w+)(?:\{(.*)\})? \S+$", page, flags=re.MULTILINE)
    return [(name, {k: v for k, _, v in re.findall(LABEL, labels)}) for name, labels in found]


@pytest.mark.slow
def test_a_workers_failure_names_rank_and_cause(cluster: None, tmp_path: Path) -> None:
    run = create(tmp_path)
    with pytest.raises(TrainingError, match=r"rank 0 on \S+ \(\w+\): CacheError: .*nowhere"):
        fit(run, tmp_path / "nowhere", None)
    assert "no restart is left of 0 (cluster.max_failures)" in run.progress_path.read_text()
    assert run.errors_path.read_text().startswith("rank 0\nTraceback")
