"""What a run needs of the world around it, tried before anything is paid for.

`jobs/plan.py --check` prints every finding. `jobs/distill.py` asks the same, prints what is not in
order, and is refused where a finding is wrong; what may still come, such as GPUs that an autoscaler
brings or a tracking server that restarts, only warns there.
"""

import base64
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import uuid4

import psutil
import ray

from magicdistill.data_pipeline.io.storage import place
from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.models.locations import find_weights
from magicdistill.models.paths import scheme_of
from magicdistill.platform.cluster.node_gpus import Gpus, gpus_by_node
from magicdistill.platform.cluster.ray_cluster import joined_address, ray_cluster
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.data.prepare import data_configs, data_root
from magicdistill.platform.planning.budget import Budget, budget
from magicdistill.platform.planning.plan import GIB, Plan, plan
from magicdistill.platform.planning.preflight import weight_locations, weight_problems
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import resolve_root

Verdict = Literal["ok", "not asked", "waits", "wrong"]
PROBE_S = 0.5
"""Seconds for which the speed of a folder is measured."""
PROBE_BYTES = 8 << 20
MAX_PROBE_BYTES = 256 << 20
ANSWER_S = 10
"""Seconds in which a tracking server must answer."""
SHARED_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "fuse.s3fs", "cifs")
"""File systems whose locks SQLite cannot trust."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    verdict: Verdict
    text: str
    """What is there, or what is wrong and the fix."""

    def __str__(self) -> str:
        return f"{self.verdict:<9} {self.name}: {self.text}"


def report_checks(recipe: Recipe) -> bool:
    """Print a line for each check, those of the cluster included; tell whether all are in order."""
    found = list(check_start(recipe))
    if joined_address(recipe.cluster) is None and not ray.is_initialized():
        reason = "no cluster; give --cluster.address or RAY_ADDRESS"
        found.append(Finding("GPUs", "not asked", reason))
    else:
        with nullcontext() if ray.is_initialized() else ray_cluster(recipe.cluster):
            found += check_cluster(recipe)
    with logs.ending_with_its_reader():
        print(*found, sep="\n")
    return all(finding.verdict in ("ok", "not asked") for finding in found)


def demand_start(recipe: Recipe, *, resumed: bool) -> None:
    """Say what may still come; raise RecipeError with everything that a run would fail for."""
    _demand(check_start(recipe, resumed=resumed))


def demand_cluster(recipe: Recipe) -> None:
    """Ask the cluster that Ray is connected to for the GPUs, as `demand_start` does."""
    _demand(check_cluster(recipe))


def _demand(findings: Iterator[Finding]) -> None:
    found = list(findings)
    for finding in found:
        if finding.verdict == "waits":
            logs.say(f"warning: {finding.name}: {finding.text}")
    wrong = [f"{finding.name}: {finding.text}" for finding in found if finding.verdict == "wrong"]
    if wrong:
        raise RecipeError("\n".join(wrong))


def check_start(recipe: Recipe, *, resumed: bool = False) -> Iterator[Finding]:
    """Yield what is found without a cluster: weights, sources, storage, token, tracking server.

    A resumed run has filled much of its storage already: the free disk is not asked for.
    """
    yield from check_assets(recipe)
    yield from _storage(recipe, _plan(recipe), resumed=resumed)
    yield _token(recipe, os.environ)
    yield check_tracking(recipe.tracking.uri, resolve_root(recipe.runs))


def check_assets(recipe: Recipe) -> Iterator[Finding]:
    """Yield what is found of the weights and of the sources of clips."""
    yield from _weights(recipe)
    for title, data in data_configs(recipe).items():
        yield from _sources(title, data.sources)


def check_cluster(recipe: Recipe) -> Iterator[Finding]:
    """Yield what is found about the GPUs of the cluster that Ray is connected to."""
    if not recipe.cluster.gpus_per_worker:
        yield Finding("GPUs", "ok", "the recipe computes on processors")
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    made = _plan(recipe)
    gpus = [node["Resources"].get("GPU", 0) for node in nodes]
    yield judge_count(recipe, made, gpus)
    yield judge_groups(recipe, gpus)
    if recipe.cluster.rehearsal:
        yield Finding("GPU memory", "not asked", "cluster.rehearsal computes on processors")
    else:
        yield judge_memory(recipe, made, gpus_by_node(nodes))


def judge_count(recipe: Recipe, made: Plan | None, gpus_by_node: Sequence[float]) -> Finding:
    """Compare the GPUs of the living nodes with those that the run holds at a time."""
    cluster, costs = recipe.cluster, made and budget(made)
    wanted = costs.num_gpus if costs else cluster.num_workers * cluster.gpus_per_worker
    there = sum(gpus_by_node)
    text = f"{there:g} on {sum(count > 0 for count in gpus_by_node)} node(s), {wanted:g} wanted"
    if there >= wanted:
        return Finding("GPUs", "ok", text)
    return Finding("GPUs", "waits", f"{text}; start more nodes, or give fewer cluster.num_workers")


def judge_groups(recipe: Recipe, gpus_by_node: Sequence[float]) -> Finding:
    """Ask whether the workers that share a sample have room beside each other on the nodes."""
    cluster, name = recipe.cluster, "sequence groups"
    size = cluster.sequence_parallel
    places = [int(count // cluster.gpus_per_worker) for count in gpus_by_node]
    whole = sum(count // size * size for count in places)
    text = f"cluster.sequence_parallel {size}, and nodes with room for"
    text += f" {', '.join(str(count) for count in places if count) or 'no'} workers"
    if whole >= cluster.num_workers or sum(places) < cluster.num_workers:
        return Finding(name, "ok", text)
    return Finding(
        name,
        "wrong",
        f"{text}: {whole} of {cluster.num_workers} workers are in groups on one node; give one "
        "that divides the workers of every node",
    )


def judge_memory(recipe: Recipe, made: Plan | None, gpus: Mapping[str, Gpus]) -> Finding:
    """Compare the GPUs' names and memory in bytes, by node, with what the plan counts on."""
    wanted, kind = made.gpu_bytes if made else 0, recipe.cluster.gpu
    if made is not None:
        wanted = max(wanted, made.evaluation_bytes, made.pair_bytes)
    silent = [node for node, found in gpus.items() if not found]
    small = [
        f"{node} has {name} of {size / GIB:.1f} GiB"
        for node, found in gpus.items()
        for name, size in found
        if size < wanted
    ]
    if small:
        text = f"{wanted / GIB:.1f} GiB are needed, and {'; '.join(dict.fromkeys(small))}"
        return Finding("GPU memory", "wrong", f"{text}; see jobs/plan.py for what needs less")
    if silent:
        text = f"nvidia-smi does not answer on {', '.join(silent)}; mend or replace the node(s)"
        return Finding("GPU memory", "wrong", text)
    names = sorted({name for found in gpus.values() for name, _ in found})
    if other := [name for name in names if kind not in name.lower()]:
        text = f"{', '.join(other)} where cluster.gpu is {kind}; give that, so that plans are right"
        return Finding("GPU memory", "waits", text)
    text = f"{', '.join(names) or 'no GPU yet'}; {wanted / GIB:.1f} GiB of each are needed"
    return Finding("GPU memory", "ok", text)


def _plan(recipe: Recipe) -> Plan | None:
    """Return the plan of a recipe on GPUs; None for others and where no transformer is trained."""
    if not recipe.cluster.uses_gpus:
        return None
    try:
        return plan(recipe)
    except RecipeError:
        return None


def _weights(recipe: Recipe) -> Iterator[Finding]:
    """Open the configuration of the VAE and of each transformer."""
    problems = dict(weight_problems(recipe))
    for field, location in weight_locations(recipe):
        if field in problems:
            fix = "" if recipe.assets_root else "; --assets_root DIR moves all paths below data/"
            yield Finding(field, "wrong", problems.pop(field).removeprefix(f"{field}: ") + fix)
            continue
        yield Finding(field, "ok", str(find_weights(location, field)))
    for field, problem in problems.items():
        yield Finding(field, "wrong", problem.removeprefix(f"{field}: "))


def _sources(title: str, sources: Sequence[Any]) -> Iterator[Finding]:
    """Open each source and look for its first clip."""
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate(sources):
            field = f"{title} source {number} ({source.kind})"
            try:
                first = next(iter_videos([source], Path(folder)), None)
            except Exception as error:  # whatever a store or a plugin raises is what is to be said
                yield Finding(field, "wrong", f"{error or type(error).__name__}; mend the source")
                continue
            if first is None:
                yield Finding(field, "waits", "it has no clips; fill it or leave it out")
            else:
                yield Finding(field, "ok", f"begins with {first.source_id}")


def _storage(recipe: Recipe, made: Plan | None, *, resumed: bool) -> Iterator[Finding]:
    """Write in the folder of the runs, measure it, and write in the other places."""
    runs, costs = resolve_root(recipe.runs), made and budget(made)
    try:
        demand_output_folder(runs, "--runs")
    except ValueError as error:
        yield Finding("write access", "wrong", str(error))
    else:
        yield Finding("write access", "ok", str(runs))
        if not resumed:
            yield _space(runs, recipe, costs)
        if made and costs:
            yield judge_speed(recipe, made, costs, write_speed(runs))
    for field, place_ in (("data_root", recipe.data_root), ("mirror", recipe.mirror)):
        if place_ is not None:
            root = data_root(recipe, runs) if field == "data_root" else place(place_)
            yield _written(field, root)


def _space(runs: Path, recipe: Recipe, costs: Budget | None) -> Finding:
    free = disk_usage(runs).free
    if costs is None:
        return Finding("free disk", "ok", f"{free / 1e9:.3g} GB")
    wanted = costs.storage_bytes
    if recipe.data_root is not None:
        wanted -= costs.cache_bytes
    text = f"{free / 1e12:.3g} TB free in {runs}, {wanted / 1e12:.3g} TB planned"
    if free >= wanted:
        return Finding("free disk", "ok", text)
    fix = "free some, give another --runs, or fewer schedule.keep_checkpoints"
    return Finding("free disk", "wrong", f"{text}; {fix}")


def write_speed(folder: Path) -> float:
    """Return the bytes per second that one stream writes, synced, in about half a second."""
    data = os.urandom(PROBE_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start, written = time.perf_counter(), 0
        while written < MAX_PROBE_BYTES and time.perf_counter() - start < PROBE_S:
            written += file.write(data)
            os.fsync(file.fileno())
        return written / (time.perf_counter() - start)


def judge_speed(recipe: Recipe, made: Plan, costs: Budget, speed: float) -> Finding:
    """Ask whether a checkpoint is written before the next is due, even by one stream alone."""
    every = recipe.schedule.checkpoint_every
    seconds, due = costs.checkpoint_bytes / speed, every * (made.seconds_per_cycle or 0)
    text = (
        f"{speed / 1e6:.0f} MB/s in one stream: {seconds:.0f} s for a checkpoint of "
        f"{costs.checkpoint_bytes / 1e9:.0f} GB, of which one is due each {due:.0f} s"
    )
    if seconds <= due:
        return Finding("write speed", "ok", text)
    fix = f"give a faster file system, or more than schedule.checkpoint_every {every}"
    return Finding("write speed", "waits", f"{text}; {fix}")


def _written(field: str, root: Any) -> Finding:
    """Write a small file in a folder or an object store, and remove it."""
    try:
        if isinstance(root, Path):
            demand_output_folder(root, field)
        else:
            probe = root / f".write-access-{uuid4().hex}"
            probe.write_bytes(b"")
            probe.fs.rm_file(probe.path)
    except Exception as error:  # stores raise errors of their own libraries
        return Finding(field, "wrong", f"{root}: {error}; give a place that can be written")
    return Finding(field, "ok", str(root))


def _token(recipe: Recipe, environment: Mapping[str, str]) -> Finding:
    """Look for the token that the cluster's doors ask for, where Ray looks for it."""
    address, name = joined_address(recipe.cluster), "token"
    if address is None:
        return Finding(name, "not asked", "no cluster; a local one makes its own")
    if environment.get("RAY_AUTH_MODE") != "token":
        text = f"whoever reaches {address} runs code on it; export RAY_AUTH_MODE=token everywhere"
        return Finding(name, "waits", text)
    if environment.get("RAY_AUTH_TOKEN"):
        return Finding(name, "ok", "RAY_AUTH_TOKEN")
    path = environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    file = Path(path).expanduser()
    if file.is_file() and file.read_text().strip():
        return Finding(name, "ok", str(file))
    return Finding(
        name, "wrong", f"none in {file}; ray get-auth-token --generate, or copy it there"
    )


def check_tracking(uri: str | None, runs: Path) -> Finding:
    """Ask the tracking server for an experiment, with the credentials that MLflow would send."""
    name, scheme = "tracking", scheme_of(uri or "")
    if uri is None or uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///")) if uri else runs / "mlflow.db"
        kind = _file_system(file)
        if kind in SHARED_FILE_SYSTEMS and uri is not None:
            text = f"{file} is on {kind}, whose locks SQLite cannot trust; give a server or a disk"
            return Finding(name, "waits", text)
        return Finding(name, "ok", f"SQLite in {file}")
    if scheme not in ("http", "https"):
        return Finding(name, "not asked", f"{uri} is a data base or a service")
    return _server(name, uri.rstrip("/"), os.environ)


def _server(name: str, uri: str, environment: Mapping[str, str]) -> Finding:
    url = f"{uri}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        with urlopen(Request(url, headers=_credentials(environment)), timeout=ANSWER_S) as answer:
            json.load(answer)
    except HTTPError as error:
        error.close()
        if error.code in (401, 403):
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN"
            return Finding(name, "waits", f"{uri} refuses us ({error.code}); {fix}")
        return Finding(name, "waits", f"{uri} answers {error.code}; look at the server's log")
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"{uri} is no MLflow server that answers ({reason}); start it, or give another"
        return Finding(name, "waits", f"{text} --tracking.uri")
    return Finding(name, "ok", uri)


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    if user := environment.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    return {}


def _file_system(path: Path) -> str:
    """Return the kind of the file system that holds a path."""
    mounts = psutil.disk_partitions(all=True)
    holding = [mount for mount in mounts if path.absolute().is_relative_to(mount.mountpoint)]
    return max(holding, key=lambda mount: len(mount.mountpoint)).fstype if holding else ""
