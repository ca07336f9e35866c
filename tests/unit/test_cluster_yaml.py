"""The cluster file is one that Ray's own launcher accepts."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    """Return the cluster file with Ray's defaults filled in."""
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_the_cluster_file_satisfies_rays_schema(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_the_cluster_is_one_head_and_five_nodes_of_eight_gpus(cluster: dict[str, Any]) -> None:
    workers = dict(cluster["available_node_types"])
    head = workers.pop(cluster["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert [(node["min_workers"], node["resources"]["GPU"]) for node in workers.values()] == [
        (5, 8)
    ]
    assert cluster["max_workers"] == 5


def test_the_images_carry_the_pinned_ray_and_python(cluster: dict[str, Any]) -> None:
    images = cluster["docker"]["image"], cluster["docker"]["head_image"]
    assert all(image.startswith(f"rayproject/ray:{version('ray')}-py311") for image in images)


def test_what_the_cluster_installs_is_the_constraints_file(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/constraints.txt"] == "constraints.txt"
    assert (ROOT / "constraints.txt").is_file()
