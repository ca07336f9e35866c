"""A driver for test_checkpoint_evaluation.py: a training whose checkpoints are scored beside it."""

import json
import sys
import time
from pathlib import Path

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.engines.ema import averaged
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.checkpoint_evaluation import has_room, scoring_checkpoints
from magicdistill.platform.training.validation import Validation
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

STOPS = (1, 2, 3)
SECTIONS = {
    "schedule": {"checkpoint_every": 1, "keep_checkpoints": 1, "ema_decay": 0.5},
    "evaluation": {"num_shown": 2, "num_scored": 4, "scored_by": "actor"},
    "health": {"best_by": "proxy_frechet_distance"},
    "cluster": {"gpus_per_worker": 0},
    "model": {"preset": "nano"},
}


def recipe_to(stop: int) -> Recipe:
    """Return a recipe that ends after `stop` cycles."""
    schedule = SECTIONS["schedule"] | {"num_cycles": stop}
    return tiny_recipe(4, **SECTIONS | {"schedule": schedule})


def train(run: RunDirectory, cache: AnyPath, stop: int) -> Worker:
    """Train on from the last checkpoint, and wait until the new one is scored."""
    run.store(recipe_to(stop))
    worker = Worker(run, cache, cache, rank=0, world_size=1, is_scored_apart=True)
    worker.run_all()
    while stop not in {row["step"] for row in run.checkpoint_scores()}:
        time.sleep(0.2)
    return worker


def main() -> None:
    """Train in three parts with the evaluator at hand; print what there is to know."""
    folder = Path(sys.argv[1])
    run, cache = RunDirectory.create(folder, recipe_to(STOPS[-1])), write_cache(folder / "data")
    with ray_cluster(ClusterConfig(dashboard=False)):
        assert has_room(run.recipe(), print)
        evaluation = run.recipe().evaluation
        assert evaluation is not None
        greedy = evaluation.model_copy(update={"actor_gpus": 1.0})
        has_gpu = has_room(run.recipe().model_copy(update={"evaluation": greedy}), print)
        with scoring_checkpoints(run, cache):
            for stop in STOPS:
                worker = train(run, cache, stop)
    own = Validation(run.recipe(), cache, rank=0, world_size=1, device="cpu", num_scored=4)
    with averaged(worker.ema):
        scores = own.scores(worker.engines["generator"].module)
    facts = {
        "rows": list(run.checkpoint_scores()),
        "own": scores,
        "best": run.best(),
        "kept": sorted(int(p.name.rpartition("-")[2]) for p in run.checkpoints.glob("cycle-*")),
        "has_gpu": has_gpu,
        "held": run.scored_now_path.exists(),
        "said": run.progress_path.read_text(),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
