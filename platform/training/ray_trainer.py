"""Training under Ray Train: how the group of workers is started, and ends.

What a worker does is in `worker.py`, whose packages take seconds to import: only workers do.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from magicdistill.data_pipeline.io.storage import AnyPath, place
from magicdistill.platform.checkpoints.checkpoint_folder import cycle_of
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.cluster import ranks
from magicdistill.platform.cluster.nccl_settings import (
    TRACES,
    detector_variables,
    in_environment,
    worker_variables,
)
from magicdistill.platform.cluster.node_layout import (
    demand_whole_groups,
    describe_nodes,
    nodes_of_ranks,
)
from magicdistill.platform.cluster.preemption import (
    is_draining,
    leaving_in_order,
    watch_for_sigterm,
)
from magicdistill.platform.cluster.speed_check import check_workers
from magicdistill.platform.cluster.worker_failures import (
    explained_failure,
    explained_memory,
    record_nodes,
    recorded_failure,
)
from magicdistill.platform.data.batches import deal
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.checkpoint_evaluation import has_room, scoring_checkpoints
from magicdistill.platform.training.health import UnhealthyError


def fit(run: RunDirectory, data: AnyPath, held_out: AnyPath | None) -> None:
    """Train the run's recipe on a group of Ray Train workers.

    `data` is a latent cache, or a folder of pixel windows where a VAE is trained; `held_out`
    gives the fixed validation samples. A lost worker restarts the group from the last
    checkpoint. Raises TrainingError, naming ranks and causes, where that does not help, and
    ValueError where the batch does not divide over the workers, and
    UnhealthyError where the run was stopped for its health. Exits after SIGTERM, when the workers
    have saved a checkpoint.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from magicdistill.platform.cluster.restarts import RestartReporter
    from magicdistill.platform.cluster.train_controller import FailedNodes, Trainer

    recipe = run.recipe()
    cluster = recipe.cluster
    deal(recipe.schedule, cluster.sequence_parallel, rank=0, world_size=cluster.num_workers)
    asks_for_gpus = cluster.gpus_per_worker > 0
    resources = {"CPU": 1.0} | ({"GPU": cluster.gpus_per_worker} if asks_for_gpus else {})
    run.health_report_path.unlink(missing_ok=True)
    is_scored_apart = held_out is not None and has_room(recipe, run.say)
    scoring = (
        scoring_checkpoints(run, held_out)
        if held_out is not None and is_scored_apart
        else nullcontext()
    )
    failed_nodes, newest = FailedNodes(run), partial(_newest_cycle, run)
    reporter = RestartReporter(run, cluster.max_failures, newest, failed_nodes.note)
    callbacks: list[Any] = [reporter, failed_nodes]  # Ray's own type has callbacks of users alone
    (run.path / TRACES).mkdir(exist_ok=True)
    trainer = Trainer(
        train_worker,
        train_loop_config={
            "run": str(run.path),
            "data": str(data),
            "held_out": held_out and str(held_out),
            "is_scored_apart": is_scored_apart,
        },
        torch_config=TorchConfig(
            backend="nccl" if cluster.uses_gpus else "gloo", timeout_s=cluster.collective_timeout_s
        ),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=asks_for_gpus,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.path),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=callbacks,
            worker_runtime_env={"env_vars": worker_variables(run.path)},
        ),
    )
    detector = detector_variables(cluster.collective_timeout_s) if cluster.uses_gpus else {}
    with (
        leaving_in_order(run.stop_path),
        explained_failure(run),
        scoring,
        in_environment(detector),
    ):
        trainer.fit()
    if run.health_report_path.exists():
        raise UnhealthyError(run.health_report_path.read_text())


def _newest_cycle(run: RunDirectory) -> int:
    """Return the cycle of the newest checkpoint here, 0 where there is none."""
    return max(map(cycle_of, Checkpoints(run.checkpoints, keep=1).committed()), default=0)


def train_worker(config: dict[str, Any]) -> None:
    """Run one worker of the group."""
    import ray.train
    import ray.train.torch

    watch_for_sigterm()
    run = RunDirectory(Path(config["run"]))
    cluster, context = run.recipe().cluster, ray.train.get_context()
    nodes = nodes_of_ranks()
    if context.get_world_rank() == 0:
        record_nodes(run, nodes)
    if context.get_world_rank() == 0 and len(set(nodes)) > 1:
        for line in describe_nodes(nodes):
            run.say(line)
    rank = context.get_world_rank()
    with recorded_failure(run, rank), explained_memory():
        ranks.first_succeeds(lambda: demand_whole_groups(nodes, cluster.sequence_parallel))
        device = "cpu" if cluster.rehearsal else ray.train.torch.get_device()
        check_workers(run, cluster, nodes, device)
        from magicdistill.platform.training.worker import Worker

        worker = Worker(
            run,
            place(config["data"]),
            config["held_out"] and place(config["held_out"]),
            rank=rank,
            world_size=context.get_world_size(),
            device=device,
            is_draining=is_draining,
            is_scored_apart=config["is_scored_apart"],
        )
        ranks.set_timeout(cluster.collective_timeout_s)  # of the groups that engines have made too
        worker.run_all()
