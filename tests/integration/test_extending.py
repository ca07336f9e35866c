"""The examples of docs/extending.md: one module that a recipe names, used as the recipe does."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.media.video import probe, write_mp4
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.metrics.suite import MetricSuite, summarise
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe, load_recipe, to_yaml
from magicdistill.platform.export.export import export, export_lora
from magicdistill.platform.export.pretrained_model import ASSETS, find_pretrained
from magicdistill.platform.inference.sample_video import Order, VideoSampler
from magicdistill.platform.planning.flops import operations
from magicdistill.platform.planning.plan import changed, plan
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.curation_tables import scored
from tests.registries import registries_restored
from tests.tiny_run import write_cache

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text()
NAME = "my_extensions"
FACE = ASSETS / "portrait-tiny" / "face.png"
CHANGES = """
model: {{preset: tiny-dit, vae: null, teacher: null}}
method: {{name: robust, delta: 0.25}}
data:
  num_actors: 1
  measures: {{scorers: [{{kind: hues}}]}}
  policy: {{limits: {{all: {{hues.colourfulness: {{min: 1}}}}}}}}
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
    assert recipe.model.shapes.transformer.kind == "tiny-dit"
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

        return "edge_strength" in METRICS.names(), "tiny-dit" in PRESETS

    with ray_cluster(recipe.cluster):
        assert ray.get(registered.remote()) == (True, True)
        curator = Curator([recipe.data], tmp_path)
        curator.ingest()
        curator.score()
    (source,) = recipe.data.sources
    measures = recipe.data.measures
    ledger = Ledger(tmp_path / "ledger")
    found = scored(ledger, list(source.videos(tmp_path)), measures.version, measures.scorers)
    scores = [clip.scores["hues.colourfulness"] for clips in found.values() for clip in clips]
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


def test_the_method_trains_the_backbone_for_a_cycle(recipe: Recipe) -> None:
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


def own_teacher(recipe: Recipe, runs: Path, method: dict[str, Any]) -> Recipe:
    """Return a recipe of one cycle of a method of the project, for the plugin's backbone."""
    values = load_recipe("portrait-tiny-smoke").model_dump(exclude={"method"})
    values["schedule"] |= {"num_cycles": 1, "sample_every": 1}
    values["cluster"]["num_workers"] = 1
    model = {"preset": recipe.model.preset, "vae": values["model"]["vae"]}
    changes = {"model": model, "method": method, "plugins": recipe.plugins, "runs": str(runs)}
    return Recipe.model_validate(values | changes | {"engine": {"kind": "torch"}})


METHODS = (
    {"name": "finetune"},
    {"name": "magic", "real_guidance": 2.0, "adversarial_weight": 0.05, "lora": {"rank": 4}},
)


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method["name"])
def trained(
    recipe: Recipe, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A run of a method of the project that trained the plugin's backbone for a cycle."""
    folder = tmp_path_factory.mktemp(request.param["name"])
    cache = write_cache(folder / "cache")
    made = own_teacher(recipe, folder / "runs", request.param)
    run = RunDirectory.create(folder / "runs", made)
    Worker(run, cache, cache, rank=0, world_size=1).run_all()
    return run


def test_the_backbone_is_planned(trained: RunDirectory) -> None:
    made = plan(trained.recipe())
    assert made.sample.video_tokens == 5 * 4 * 4 and made.operations_per_cycle > 0
    split = changed(trained.recipe(), {"cluster.sequence_parallel": 2, "cluster.num_workers": 2})
    with pytest.raises(RecipeError, match=r"backbone tiny-dit cannot be split: choose .* 1, not 2"):
        plan(split)


def test_plans_count_the_operations_that_torch_counts(recipe: Recipe) -> None:
    shapes = recipe.model.shapes.transformer
    model = VelocityModel(build_transformer(shapes))
    x = torch.randn(1, 16, 5, 16, 16)
    null = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, torch.ones(1), null).sum().backward()
    step = ForwardPass("generator", "", "weights")
    predicted = operations(Sample(shapes, 5, 16, 16), step, recompute="none")
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_the_backbone_trains_with_lora_discriminator_and_guidance(trained: RunDirectory) -> None:
    (row,) = trained.metrics()
    recipe = trained.recipe()
    expected = ["generator/grad_norm"]
    if recipe.method.name == "magic":
        expected += ["critic/lora/grad_norm", "critic/discriminator/grad_norm"]
        assert recipe.model_dump()["method"]["lora"]["targets"] == (
            r"blocks\.\d+\.(to_qkv|to_out|mlp\.[02])",
        )
    assert all(row[name] > 0 for name in expected), row


def test_the_backbone_is_exported_and_sampled(trained: RunDirectory, tmp_path: Path) -> None:
    export(str(trained.path), tmp_path / "model", dtype="fp32")
    assert not (tmp_path / "model" / "model_index.json").exists()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`TinyDit` was trained" in card and "jobs/sample.py --model" in card
    sampler = VideoSampler(find_pretrained(str(tmp_path / "model")), "cpu")
    sampler.make(Order(FACE, tmp_path / "video.mp4"))
    assert probe(tmp_path / "video.mp4").num_frames == 17


def test_the_backbones_lora_is_exported_for_peft(trained: RunDirectory, tmp_path: Path) -> None:
    if trained.recipe().method.lora_rank == 0:
        pytest.skip("the method trains none")
    export_lora(str(trained.path), tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert f"from {NAME} import TinyDit\n" in card
    own = trained.recipe().method.build(trained.recipe().model, WHOLE).lora()
    assert own is not None
    files = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(files) == sum("lora_" in name for name, _ in own.transformer.named_parameters())


def test_guidance_that_the_backbone_cannot_take_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    made = own_teacher(recipe, tmp_path, {"name": "cfg-distill"})
    with pytest.raises(ValueError, match="TinyDit cannot take the guidance scale as an input"):
        made.method.build(made.model, WHOLE)


def test_a_resolved_recipe_that_gets_the_preset_takes_its_targets(recipe: Recipe) -> None:
    changed = load_recipe("portrait-tiny-smoke", ["--model.preset", "tiny-dit"])
    assert changed.model_dump()["method"]["lora"]["targets"] == (
        r"blocks\.\d+\.(to_qkv|to_out|mlp\.[02])",
    )


def test_kernels_that_the_backbone_lacks_are_refused(recipe: Recipe) -> None:
    model = VelocityModel(build_transformer(recipe.model.shapes.transformer))
    with pytest.raises(ValueError, match=r"kernels\.attention flash: TinyDit has sdpa alone"):
        set_kernels(model, KernelsConfig(attention="flash"))


def test_recomputed_blocks_give_the_same_gradients(recipe: Recipe) -> None:
    model = VelocityModel(build_transformer(recipe.model.shapes.transformer))
    x = torch.randn(1, 16, 3, 4, 4)
    null = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=0)
    found = []
    for recompute in ("none", "full"):
        set_kernels(model, KernelsConfig(recompute_blocks=recompute))
        loss = model(x, torch.ones(1), null).square().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(found[1], found[0])
