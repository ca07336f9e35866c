"""Stock pipelines of four classes make a video of a picture, each with its class's settings."""

from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket
from magicdistill.platform.evaluation.contestants import Request, StockPipeline, fitted
from tests.tiny_pipelines import save_stock_pipeline

SHAPE = Bucket(num_frames=9, height=48, width=64, fps=24)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("wan", "from 9 frames of 48x64 at 16 fps"),
        ("ltx", "from 17 frames of 64x64 at 25 fps"),
        ("cogvideox", "from 9 frames of 48x64 at 8 fps"),
        ("svd", "from 4 frames of 64x64 at 7 fps"),
    ],
)
def test_a_stock_pipeline_is_a_contestant(name: str, change: str, tmp_path: Path):
    contestant = StockPipeline(name, save_stock_pipeline(name, tmp_path / name), {"steps": 2})
    contestant.demand(())
    face = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    make = contestant.open("cpu")
    videos = [make(Request("a-0", face, "a face", seed, SHAPE)) for seed in (1, 1, 2)]
    assert np.array_equal(videos[0].frames, videos[1].frames)
    assert not np.array_equal(videos[0].frames, videos[2].frames)
    frames, said = fitted(videos[0], SHAPE)
    assert frames.shape == (9, 48, 64, 3) and said.partition(", played")[0] == change
    assert contestant.nfe == 2
    facts = contestant.facts(["a-0"])
    assert facts["options"] == {"steps": 2} and len(facts["weights"]) >= 2
