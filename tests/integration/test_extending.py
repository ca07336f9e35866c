"""The examples of docs/extending.md: one module that a recipe names, used as the recipe does."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.metrics.suite import MetricSuite, summarise
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.recipe import Recipe, load_recipe, to_yaml
from tests.registries import registries_restored

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text()
NAME = "my_extensions"
CHANGES = """
model: {{preset: portrait-mini, vae: null, teacher: null}}
method: {{name: robust, delta: 0.25}}
data:
  num_actors: 1
  measures: {{scorers: [{{kind: colour}}]}}
  policy: {{limits: {{all: {{colour.colourfulness: {{min: 1}}}}}}}}
  sources: [{{kind: captioned-folder, path: {clips}, license: CC0}}]
evaluation: {{columns: [edge_strength, temporal_flickering]}}
"""


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """The recipe of the document, with every example in it, over two captioned clips."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "modules").mkdir()
    (folder / "modules" / f"{NAME}.py").write_text("\n\n".join(blocks("python")))
    clips = folder / "clips"
    clips.mkdir()
    for seed in range(2):
        write_mp4(clips / f"{seed}.mp4", render_clip(seed, num_frames=25), 24)
        (clips / f"{seed}.txt").write_text(f"portrait {seed}\n")
    path = folder / "mine.yaml"
    path.write_text(blocks("yaml")[0] + CHANGES.format(clips=clips))
    with pytest.MonkeyPatch.context() as patch, registries_restored():
        patch.syspath_prepend(folder / "modules")
        paths = (str(folder / "modules"), os.environ.get("PYTHONPATH"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield load_recipe(path)


def test_a_recipe_chooses_what_a_plugin_registers(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.plugins == (NAME,)
    assert recipe.method.name == "robust"
    assert recipe.model.shapes.transformer.num_layers == 1
    stored = tmp_path / "stored.yaml"
    stored.write_text(to_yaml(recipe))
    assert load_recipe(stored) == recipe


def test_the_source_lists_clips_with_captions(recipe: Recipe, tmp_path: Path) -> None:
    (source,) = recipe.data.sources
    videos = list(source.videos(tmp_path))
    assert [video.caption for video in videos] == ["portrait 0", "portrait 1"]
    assert not any(video.fault for video in videos)


def test_workers_know_the_plugin_and_score_with_it(recipe: Recipe, tmp_path: Path) -> None:
    @ray.remote
    def registered() -> tuple[bool, bool]:
        from magicdistill.models.metrics.columns.registry import METRICS
        from magicdistill.models.networks.presets import PRESETS

        return "edge_strength" in METRICS.names(), "portrait-mini" in PRESETS

    with ray_cluster(recipe.cluster):
        assert ray.get(registered.remote()) == (True, True)
        curator = Curator([recipe.data], tmp_path)
        curator.ingest()
        curator.score()
    (source,) = recipe.data.sources
    measures = recipe.data.measures
    ledger = Ledger(tmp_path / "ledger")
    found = ledger.scored(list(source.videos(tmp_path)), measures.version, measures.scorers)
    scores = [clip.scores["colour.colourfulness"] for clips in found.values() for clip in clips]
    assert len(scores) == 2 and all(score is not None and score > 5 for score in scores)


def test_the_metric_measures_clips(recipe: Recipe) -> None:
    assert recipe.evaluation is not None
    stripes = torch.ones(2, 3, 17, 32, 32)
    stripes[..., ::2] = -1
    stripes[:, :, ::2] *= -1
    suite = MetricSuite(None, metrics=recipe.evaluation.counted)
    measured = suite.measure(stripes, stripes, fps=24.0)
    np.testing.assert_array_equal(measured.scores["edge_strength"], [1, 1])
    table = summarise(measured, measured, {}, recipe.evaluation.counted)
    assert table["edge_strength"] == 1


def test_the_method_trains_the_preset_for_a_cycle(recipe: Recipe) -> None:
    torch.manual_seed(0)
    method = recipe.method.build(recipe.model, WHOLE)
    x0 = torch.randn(2, 16, 3, 4, 4)
    conditions = Conditions.null(x0[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    batch = Batch(x0, conditions, range(2))
    (role,) = method.updates(cycle=0)
    optimizer = torch.optim.AdamW(method.modules[role].parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = method.loss(role, method.modules, batch, Rng(0, 0, 0, range(2)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[1] < losses[0]
