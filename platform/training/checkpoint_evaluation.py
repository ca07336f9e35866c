"""Checkpoints scored on an actor beside the workers, so that the training goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.platform.checkpoints.checkpoint_folder import checkpoint_name, cycle_of
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.file_polling import polling
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.health import VALIDATION, cost

START_S = 300.0
"""Seconds that a finished training waits for an evaluator that has yet to start."""


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)
class CheckpointEvaluatorActor:
    """An evaluator in a process of its own, which alone imports the networks' packages."""

    def __init__(self, run: RunDirectory, held_out: str) -> None:
        from magicdistill.platform.training.checkpoint_evaluator import CheckpointEvaluator

        self.evaluator = CheckpointEvaluator(run, held_out)

    def score(self, checkpoint: Path) -> dict[str, float]:
        """Return the metrics of a checkpoint's generator."""
        return self.evaluator.score(checkpoint)


class CheckpointEvaluation:
    """Has the newest checkpoint scored whenever the evaluator is free, and marks the best."""

    def __init__(self, run: RunDirectory, held_out: AnyPath) -> None:
        recipe = run.recipe()
        assert recipe.evaluation is not None
        self.run, self.best_by = run, recipe.health.best_by
        self.num_clips = recipe.evaluation.num_scored
        self.checkpoints = Checkpoints.of(run)
        self.is_over = False
        self._failed: set[int] = set()
        run.scored_now_path.unlink(missing_ok=True)  # left by a driver that was killed
        actor: Any = CheckpointEvaluatorActor.options(num_gpus=recipe.evaluation.actor_gpus or None)
        self.evaluator = actor.remote(run, str(held_out))
        self._ready = self.evaluator.__ray_ready__.remote()

    def look(self, patience_s: float = 0.0) -> None:
        """Score the newest checkpoint, if that is not done; what fails is logged and left alone.

        Waits no longer than `patience_s` for an evaluator that has yet to start.
        """
        newest = self.checkpoints.committed()[-1:]
        done = {row["step"] for row in self.run.checkpoint_scores()} | self._failed
        for path in newest:
            if (cycle := cycle_of(path)) in done or self.run.stop_path.exists():
                continue
            if ray.wait([self._ready], timeout=patience_s)[0]:
                self._score(path, cycle)
            elif patience_s:
                self.run.say(f"the actor that scores found no place: cycle {cycle} is not scored")

    def end(self) -> None:
        """Stop what is going on."""
        self.is_over = True
        ray.kill(self.evaluator)

    def _score(self, path: Path, cycle: int) -> None:
        # Pruning that begins after this spares the checkpoint.
        write_text(self.run.scored_now_path, f"{cycle}\n")
        try:
            scores: dict[str, float] = ray.get(self.evaluator.score.remote(path))
            self.run.append_checkpoint_scores(cycle, scores)
            self._mark_best()
            values = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.run.say(f"cycle {cycle} scored on {self.num_clips} clips  {values}")
        except Exception as error:
            self._failed.add(cycle)
            if not self.is_over:
                cause = next(iter(str(error).splitlines()), type(error).__name__)
                self.run.say(f"the checkpoint of cycle {cycle} could not be scored: {cause}")
        finally:
            self.run.scored_now_path.unlink(missing_ok=True)

    def _mark_best(self) -> None:
        """Name the best of the checkpoints that are still there, where these scores decide."""
        kept = self.checkpoints.names()
        costs = [
            (cost(self.best_by, value), row["step"])
            for row in self.run.checkpoint_scores()
            for name, value in row.items()
            if name == VALIDATION + self.best_by and checkpoint_name(row["step"]) in kept
        ]
        if costs:
            self.run.mark_best(min(costs)[1])


@contextmanager
def scoring_checkpoints(run: RunDirectory, held_out: AnyPath) -> Iterator[None]:
    """Score checkpoints while the body runs, and the last one after it."""
    evaluation = CheckpointEvaluation(run, held_out)
    with polling(evaluation.look, 1.0, "scoring checkpoints", logs.say):
        try:
            yield
        except BaseException:
            evaluation.end()
            raise
    evaluation.look(START_S)
    evaluation.end()


def has_room(recipe: Recipe, say: Callable[[str], None]) -> bool:
    """Tell whether the recipe wants an evaluator and the cluster has room for it.

    Room is what the workers and the producers of pairs leave; `say` receives why there is none.
    """
    evaluation, cluster, pairs = recipe.evaluation, recipe.cluster, recipe.pairs
    if evaluation is None or evaluation.scored_by != "actor" or not evaluation.num_scored:
        return False
    makers = pairs.num_actors if pairs and not pairs.stored else 0
    taken = {
        "CPU": cluster.num_workers + makers,
        "GPU": cluster.num_workers * cluster.gpus_per_worker
        + makers * (pairs.gpus_per_actor if pairs else 0),
    }
    wanted = {"CPU": 1, "GPU": evaluation.actor_gpus}
    there = ray.cluster_resources()
    for name, count in wanted.items():
        free = there.get(name, 0.0) - taken[name]
        if free < count:
            say(
                f"no room for the actor that scores: it wants {count:g} {name} beside the workers "
                f"and {max(0.0, free):g} is left; the workers score"
            )
            return False
    return True
