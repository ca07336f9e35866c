"""A head without CPUs and two nodes of one: who runs where, and what is not tried again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.train import ScalingConfig
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from magicdistill.platform.cluster.train_controller import FailedNodes
from magicdistill.platform.cluster.worker_failures import TrainingError, record_nodes
from magicdistill.platform.data.ray_data_stream import home
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.ray_trainer import fit
from tests.lost_workers import lost_worker
from tests.tiny_run import tiny_recipe

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.slow
ONE_CPU = {"CPU": 1.0}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """The ids of the head and of both nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(cluster.address, runtime_env=environment, log_to_driver=False)
    try:
        cluster.wait_for_nodes()
        assert cluster.head_node is not None
        yield [cluster.head_node.node_id, *(node.node_id for node in cluster.worker_nodes)]
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    recipe = tiny_recipe(2, cluster={"num_workers": 2, "sequence_parallel": 2})
    return RunDirectory.create(tmp_path / "runs", recipe)


def test_a_node_that_failed_twice_is_left_out_while_the_others_have_room(
    nodes: list[str], run: RunDirectory
) -> None:
    _, bad, good = nodes
    failed = FailedNodes(run)
    config = ScalingConfig(num_workers=1, resources_per_worker=ONE_CPU)
    start = {"scaling_config": config}
    record_nodes(run, [f"10.0.0.1 ({bad[:8]})", f"10.0.0.1 ({good[:8]})"])
    failed.note({0: lost_worker()})
    assert failed.on_controller_start_worker_group(**start, num_workers=1) is None
    failed.note({0: lost_worker()})
    labels = failed.on_controller_start_worker_group(**start, num_workers=1)
    assert labels is not None
    assert f"({bad[:8]}) failed 2 times, and is left out" in run.progress_path.read_text()
    for _ in range(3):
        group = placement_group([ONE_CPU], bundle_label_selector=[labels])
        assert group.wait(30)
        assert placement_group_table(group)["bundles_to_node_id"] == {0: good}
        remove_placement_group(group)
    assert failed.on_controller_start_worker_group(**start, num_workers=2) is None
    assert "the others have room for 1 of 2 workers; add a node" in run.progress_path.read_text()


def test_samples_do_not_pass_through_the_head_where_a_rank_is_elsewhere(nodes: list[str]) -> None:
    head, first, second = nodes
    assert home([head, first, second]) == first
    assert home([second, first]) == second
    assert home([head, head]) == head


def test_a_sequence_group_on_two_nodes_ends_the_run_at_its_start(
    nodes: list[str], run: RunDirectory, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"sequence_parallel 2: ranks 0 to 1 share") as raised:
        fit(run, tmp_path / "data", None)
    assert "give one that divides the workers of every node, which are 1, 1" in str(raised.value)
    said = run.progress_path.read_text()
    assert said.count("LayoutError") == 1 and "are not started any more" in said
    assert "ranks 0 to 0 are on node" in said and "ranks 1 to 1 are on node" in said
