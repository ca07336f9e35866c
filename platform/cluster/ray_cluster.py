"""The Ray cluster of a job: joined, or started and taken down again."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import ray

import magicdistill
from magicdistill.platform.cluster.native_log import held_back
from magicdistill.platform.cluster.ray_failures import (
    JOINED_PATIENCE_S,
    LOCAL_PATIENCE_S,
    explained_join,
    retried_start,
    token_kept,
    watched,
)
from magicdistill.platform.config.plugins import worker_environment
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import is_submitted

IMPORT_ROOT = Path(magicdistill.__file__).parents[1]
LOCAL = "local"
"""The address by which Ray starts a cluster of its own."""
GRACE_S = 10
"""Seconds that Ray's processes may take to end once they are killed."""
STARTED_AT_ONCE = max(4, os.cpu_count() or 1)
"""Worker processes that a local Ray starts at a time; it warns once four times as many exist."""
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
"""Settings of glibc's malloc for workers on processors, in bytes.

By default it hands the memory of freed tensors back to the kernel, and each training step then pays
for the page faults of getting it again."""

GPU_ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Setting of torch's allocator for workers on GPUs, where the job brings none.

Torch reads it when CUDA starts. Gathered layers, recomputed blocks and decoded clips have many
sizes: in segments of fixed size they would leave gaps that nothing fits into."""


@dataclass(frozen=True)
class ClusterShape:
    """The cluster that a job runs on, counted when the job joined it."""

    num_nodes: int
    """Nodes that are alive."""
    num_cpus: float
    """Logical CPUs of all nodes."""
    num_gpus: float
    local: bool
    """Whether the job started the cluster on this machine for itself."""
    dashboard_url: str | None
    """Host and port of the dashboard, None where there is none."""


@contextmanager
def ray_cluster(config: ClusterConfig) -> Iterator[ClusterShape]:
    """Connect to Ray while the body runs; for the main thread of a job.

    Joins the cluster of `config.address` or RAY_ADDRESS (set in a submitted job), else starts a
    local one with token authentication, its dashboard on the loopback interface. Afterwards,
    also after Ctrl-C or SIGTERM, disconnects and stops every process that it started. Raises
    RayError where Ray does not start, or goes away meanwhile.
    """
    address = joined_address(config)
    with _without_native_lines(), ExitStack() as stack:
        if address:
            context = explained_join(partial(_connect, config, stack, address=address), address)
        else:
            stack.enter_context(token_kept())
            context = retried_start(partial(_connect, config, stack, **_local_options(config)))
        signal.signal(signal.SIGTERM, _leave)  # Ray's own handler dies on the spot
        resources = ray.cluster_resources()
        yield ClusterShape(
            num_nodes=sum(node["Alive"] for node in ray.nodes()),
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            local=not address,
            dashboard_url=context.dashboard_url or None,
        )


def _without_native_lines() -> AbstractContextManager[None]:
    """Show no lines of Ray's C++ code unless the job is verbose or fails without explanation."""
    if logs.is_verbose():
        return nullcontext()
    return held_back(logs.ExplainedError, KeyboardInterrupt, SystemExit)


def _connect(config: ClusterConfig, stack: ExitStack, **options: Any) -> Any:
    """Connect until the stack ends and return Ray's context; leave nothing where that fails."""
    is_local = options["address"] == LOCAL
    with ExitStack() as own:
        note_started, started_as = own.enter_context(_leaving_no_process())
        try:
            context: Any = ray.init(
                runtime_env=runtime_env(config, joined=not is_local),
                log_to_driver=logs.is_verbose(),
                logging_level=logging.INFO if logs.is_verbose() else logging.ERROR,
                **options,
            )
            if is_local:
                started_as(context.address_info["session_dir"])
        finally:
            note_started()
        stack.enter_context(own.pop_all())
    patience_s = LOCAL_PATIENCE_S if is_local else JOINED_PATIENCE_S
    stack.enter_context(watched(context.address_info["gcs_address"], patience_s, note_started))
    return context


@contextmanager
def _leaving_no_process() -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Shut Ray down after the body and kill what it started.

    Yields what notes its processes, as soon as they run, since those of a Ray that has ended are
    nobody's children; and what notes its session, which a worker that starts meanwhile still bears.
    """
    others = _processes()
    started: set[psutil.Process] = set()
    sessions: list[str] = []

    def note_started() -> None:
        started.update(_processes() - others)

    try:
        yield note_started, sessions.append
    finally:
        for process in [*started]:
            started |= _processes(process)
        with _no_garbage_collection():
            ray.shutdown()
        started |= {process for session in sessions for process in _of_session(session)}
        for process in started:  # all that is worth keeping is written
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=GRACE_S)


def _local_options(config: ClusterConfig) -> dict[str, Any]:
    """Return what Ray needs to know to start a cluster on this machine alone."""
    return {
        "address": LOCAL,
        "num_cpus": config.logical_cpus,
        "include_dashboard": config.dashboard,
        "dashboard_host": "127.0.0.1",
        "_system_config": {
            "worker_maximum_startup_concurrency": STARTED_AT_ONCE,
            # Workers started ahead of time lack the job's environment: they would only stand by.
            "enable_worker_prestart": False,
            "prestart_worker_first_driver": False,
        },
    }


@contextmanager
def announced_cluster(config: ClusterConfig) -> Iterator[None]:
    """Say what the Ray cluster is, and keep it while the body runs."""
    with ExitStack() as stack:
        with logs.working("starting Ray"):
            shape = stack.enter_context(ray_cluster(config))
        pages = f", dashboard http://{shape.dashboard_url}" if shape.dashboard_url else ""
        logs.say(f"Ray has {shape.num_nodes} node(s), {shape.num_cpus:g} logical CPUs{pages}")
        yield


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect no garbage while the body runs.

    A collection runs in whichever thread happens to allocate. One that frees an object of Ray's
    while the main thread shuts Ray down ends the process with a fatal error.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def joined_address(config: ClusterConfig) -> str | None:
    """Return the address of the cluster that a job joins; None where it starts its own."""
    return config.address or os.environ.get("RAY_ADDRESS")


def _processes(root: psutil.Process | None = None) -> set[psutil.Process]:
    """Return the descendants of a process, by default of this one."""
    try:
        return set((root or psutil.Process()).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _of_session(session: str) -> Iterator[psutil.Process]:
    """Yield the processes that were started for a session of Ray and are not connected yet."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(session in word for word in process.cmdline()):
                yield process


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def runtime_env(config: ClusterConfig, *, joined: bool) -> dict[str, Any]:
    """Return what the workers need to import the same code and to use their share of the cores.

    A submitted job brings its working directory along; a local cluster imports this code in
    place; a driver that joins by address uploads its source tree, or, where the package is
    installed, relies on the nodes having it installed too.
    """
    variables = logs.environment(verbose=logs.is_verbose())
    variables["OMP_NUM_THREADS"] = str(config.threads_per_worker)
    if not config.uses_gpus:
        variables |= {"DS_ACCELERATOR": "cpu", **KEEP_FREED_MEMORY}
    elif GPU_ALLOCATOR.keys().isdisjoint(os.environ):
        variables |= GPU_ALLOCATOR
    plugins = worker_environment()
    variables |= plugins.pop("env_vars", {})
    environment: dict[str, Any] = {"env_vars": variables, **plugins}
    if not joined:
        path = [str(IMPORT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(path)
    elif not is_submitted() and (IMPORT_ROOT / "pyproject.toml").is_file():
        environment["working_dir"] = str(IMPORT_ROOT)
    return environment
