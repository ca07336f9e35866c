"""The health monitor of a training, and the collapse signs that it judges."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.metrics.collapse_signs import collapse_signs, compare_signs
from magicdistill.models.objectives.types import Batch, Loss, Method
from magicdistill.platform.checkpoints.checkpoint_folder import cycle_of
from magicdistill.platform.config.sections import HealthConfig, Thresholds
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.health import HealthMonitor, UnhealthyError
from magicdistill.platform.training.loop import Loop
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

SHARE = "generator/gap_share"


def monitor(**fields: Any) -> HealthMonitor:
    return HealthMonitor(
        HealthConfig(gap_share=Thresholds(min=0.1, max=0.9), grace_cycles=0, **fields)
    )


def feed(monitor: HealthMonitor, values: list[float], metric: str = SHARE) -> list[int]:
    """Return the cycles, from 1, at which the watch complains."""
    rows = enumerate(values, start=1)
    return [cycle for cycle, value in rows if monitor.observe(cycle, {metric: value})]


def test_a_metric_must_stay_outside_for_as_long_as_the_patience() -> None:
    assert feed(monitor(patience=2), [0.5, 1.0, 0.5, 0.05, 1.0, 0.5]) == [5]
    assert feed(monitor(patience=1), [0.1, 0.9, 0.91]) == [3]


def test_nothing_is_judged_in_the_grace_cycles_or_when_off() -> None:
    strict = HealthConfig(gap_share=Thresholds(max=0), grace_cycles=3, patience=1)
    assert feed(HealthMonitor(strict), [1.0] * 4) == [4]
    assert feed(monitor(action="off", patience=1), [2.0]) == []


def test_a_value_that_is_no_number_lies_outside_every_limit() -> None:
    assert feed(monitor(patience=1), [math.nan]) == [1]
    assert feed(monitor(patience=1), [math.inf]) == [1]
    assert feed(monitor(patience=1), [math.nan], "generator/unlimited") == []


def test_values_that_are_missing_neither_count_nor_reset() -> None:
    seen = monitor(patience=2)
    rows: list[Mapping[str, float]] = [{SHARE: 2.0}, {"critic/fake_score": 1.0}, {SHARE: 2.0}]
    assert [bool(seen.observe(cycle, row)) for cycle, row in enumerate(rows, 1)] == [
        False,
        False,
        True,
    ]


def test_a_limit_holds_for_every_role() -> None:
    config = HealthConfig(grad_norm=Thresholds(max=5), grace_cycles=0, patience=1)
    ill = HealthMonitor(config).observe(7, {"generator/grad_norm": 1.0, "critic/grad_norm": 6.0})
    assert str(ill) == "unhealthy at cycle 7: critic/grad_norm is 6, above 5"


def test_the_best_checkpoint_has_the_least_score_known_when_it_was_made() -> None:
    seen = monitor()
    assert not seen.keeps(1)
    assert "no checkpoint" in seen.best
    kept = []
    for cycle, drift in [(2, 0.5), (3, 0.7), (4, math.nan), (5, 0.2), (6, 0.2)]:
        seen.observe(cycle, {"health/drift": drift})
        kept.append(seen.keeps(cycle))
    assert kept == [True, False, False, True, False]
    assert seen.best == "the best checkpoint is that of cycle 5 (drift 0.2)"


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("drift", [0.5, 0.3, 0.4], 2),
        ("proxy_frechet_distance", [0.5, math.nan, 0.4], 3),
        ("imaging_quality", [0.5, 0.9, 0.4], 2),
        ("dynamic_degree_proxy", [0.5, 1.1, 1.3], 2),
    ],
)
def test_best_is_what_is_best_of_a_metric(metric: str, scores: list[float], best: int) -> None:
    seen = HealthMonitor(HealthConfig(best_by=metric))
    kept = []
    for cycle, score in enumerate(scores, 1):
        seen.observe(cycle, {f"validation/{metric}": score})
        if seen.keeps(cycle):
            kept.append(cycle)
    assert kept[-1] == best


def test_limits_are_not_for_the_metrics_of_the_evaluation() -> None:
    seen = HealthMonitor(HealthConfig(grace_cycles=0, patience=1))
    assert seen.observe(1, {"validation/dynamic_degree": 0.0}) is None
    assert seen.observe(2, {"health/dynamic_degree": 0.0}) is not None


def test_vital_signs_of_known_clips() -> None:
    still = torch.zeros(2, 3, 4, 8, 8)
    assert collapse_signs(still) == dict.fromkeys(
        ("dynamic_degree", "saturation", "contrast", "temporal_variance"), 0.0
    )
    blinking = still.clone()
    blinking[:, 0, 1::2] = 1  # red comes and goes
    signs = collapse_signs(blinking)
    assert signs["dynamic_degree"] == pytest.approx(127.5 / 3)
    assert signs["saturation"] == pytest.approx(127.5 / 2)
    assert signs["contrast"] == 0
    assert signs["temporal_variance"] == pytest.approx(127.5**2 / 3 / 3)
    halves = still.clone()
    halves[..., :4] = 1
    expected = torch.tensor([0.0, 127.5] * 32).std().item()
    assert collapse_signs(halves)["contrast"] == pytest.approx(expected)


def test_drift_is_a_mean_of_factors() -> None:
    found = compare_signs({"contrast": 2.0, "saturation": 4.0}, {"contrast": 4.0, "saturation": 2})
    assert found == pytest.approx({"contrast": 0.5, "saturation": 2.0, "drift": math.log(2)})
    assert compare_signs({"contrast": 0.0}, {"contrast": 1.0})["drift"] < 10
    assert math.isnan(compare_signs({"contrast": math.nan}, {"contrast": 1.0})["drift"])


class Doomed(Method):
    """A method whose loss is no number from the third cycle on."""

    def __init__(self) -> None:
        super().__init__({"decoder": torch.nn.Linear(1, 1)})

    def loss(self, role: str, networks: Any, batch: Batch, rng: Any) -> Loss:
        total = torch.tensor(math.nan if rng.cycle >= 2 else 1.0)
        return Loss(total, {"calm": torch.zeros(()), "wild": total})


@pytest.mark.parametrize(
    ("norms", "cause"), [([1.0] * 5, "cycle 3: wild"), ([1.0, math.nan], "cycle 2: grad_norm")]
)
def test_a_value_that_is_no_number_stops_the_run_and_names_role_and_rank(
    norms: list[float], cause: str
) -> None:
    method, steps = Doomed(), iter(norms)
    engine: Any = SimpleNamespace(
        module=method.modules["decoder"],
        backward=lambda loss, *, last: None,
        step=lambda: {"grad_norm": next(steps)},
        lr=0.1,
    )
    batch = Batch(torch.zeros(1, 1, 1, 1, 1), None, [0])
    loop = Loop(method, {"decoder": engine}, lambda step, micro: batch, seed=0, num_micro_batches=1)
    seen: list[int] = []
    with pytest.raises(UnhealthyError, match=rf"{cause} of the decoder.*rank\(s\) 0"):
        loop.run(0, 5, [lambda cycle, metrics: seen.append(cycle)])
    assert len(seen) == int(cause[6]) - 1


def test_what_is_being_measured_stays_beside_a_new_best(tmp_path):
    recipe = tiny_recipe(2, schedule={"keep_checkpoints": 1}, health={"best_by": "drift"})
    run = RunDirectory.create(tmp_path, recipe)
    worker = Worker(run, write_cache(tmp_path / "data"), None, rank=0, world_size=1)

    def kept_after(cycle: int, drift: float) -> list[int]:
        worker.monitor.observe(cycle, {"drift": drift})
        worker.checkpointer.save(cycle)
        return sorted(cycle_of(path) for path in run.checkpoints.glob("cycle-*"))

    assert kept_after(1, 0.3) == [1]
    write_text(run.scored_now_path, "1\n")
    assert kept_after(2, 0.2) == [1, 2]
    assert run.best() == 2
    run.scored_now_path.unlink()
    assert kept_after(3, 0.1) == [3]
