"""Scoring and deciding by itself, from a cold start; it imports what that takes and no more."""

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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


def shares(folder: Path) -> Row:
    """Score every clip in this process; return CPU seconds of a clip and where they go.

    Flow includes the reduction of frames to its size. The rest is the index of frames, checksums,
    and what else of a file is looked at.
    """
    from magicdistill.data_pipeline.media.video import frames_in, hash_content
    from magicdistill.data_pipeline.sources.listing import iter_videos
    from magicdistill.data_pipeline.stages.motion import MotionMeter
    from magicdistill.data_pipeline.stages.score import score_video

    config = DataConfig.model_validate_json((folder / "part.json").read_text())
    measures = config.measures
    total = decoding = flow = hashing = 0.0
    videos = list(iter_videos(config.sources, folder))
    for video in videos:
        path = Path(video.path)
        hash_s = timed(lambda p=path: hash_content(p))[1]  # first: it is kept for the next call
        (clip,), seconds = timed(lambda v=video, p=path: score_video(v, p, measures))
        total, hashing = total + hash_s + seconds, hashing + hash_s
        decoding_s = timed(lambda p=path: each(id, frames_in(p)))[1]
        meter = MotionMeter(clip.fps, measures.motion_short_side, measures.motion_fps)
        shown = (frame.for_scorers(()) for frame in frames_in(path))
        both_s = timed(lambda m=meter, f=shown: each(m.update, f))[1]
        decoding, flow = decoding + decoding_s, flow + both_s - decoding_s
    parts = {"decoding": decoding, "flow": flow, "hash": hashing}
    parts["rest"] = total - sum(parts.values())
    return {"CPU s": total / len(videos)} | {name: part / total for name, part in parts.items()}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its CPU seconds."""
    start_s = time.process_time()
    return call(), time.process_time() - start_s


def each(call: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Call with every item."""
    for item in items:
        call(item)


PARTS = {"score": score_and_decide, "shares": shares}

if __name__ == "__main__":
    be_part(PARTS)
