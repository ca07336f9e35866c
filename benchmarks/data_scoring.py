"""Scoring and deciding by itself, from a cold start; it imports what that takes and no more."""

import tempfile
from pathlib import Path

from data_shared import Row, be_part, quiet

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig


def score_and_decide(folder: Path) -> Row:
    """Start Ray, score and decide, as a process of its own would; return how many are kept."""
    config = DataConfig.model_validate_json((folder / "part.json").read_text())
    cluster = ClusterConfig(dashboard=False, logical_cpus=8)
    with tempfile.TemporaryDirectory() as root, ray_cluster(cluster):
        curator = Curator([config], Path(root), quiet)
        curator.ingest()
        curator.score()
        (selection,) = curator.decide()
    return {"kept": len(selection.clips)}


PARTS = {"score": score_and_decide}

if __name__ == "__main__":
    be_part(PARTS)
