"""A method of one's own is one file: the platform plans, trains, tracks, reports, exports it."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor
from torch.nn import functional

from magicdistill.models.diffusion.flow import noised, velocity
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.methods.build import teacher
from magicdistill.models.methods.forward_passes import ForwardPass, Update
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import Placement
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.models.objectives.types import Batch, Loss, Method, Networks
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.export.export import ExportError, export, export_lora
from magicdistill.platform.export.pretrained_model import find_pretrained
from magicdistill.platform.inference.variants import variants
from magicdistill.platform.planning.plan import plan
from magicdistill.platform.planning.plan_table import format_plan
from magicdistill.platform.reports.run_report import write_run_report
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.run_description import describe
from magicdistill.platform.tracking.tracker import Tracker
from magicdistill.platform.training.worker import Worker
from tests.registries import registries_restored
from tests.tiny_run import write_cache


class ToyMethod(MethodConfig):
    """Regress the velocity of data at one noise level, for a generator of two steps."""

    notable = ("sigma",)

    name: Literal["toy"]
    sigma: float = 0.5
    sampler: SamplerConfig = SamplerConfig(num_steps=2)

    @property
    def trained_sampler(self) -> SamplerConfig:
        return self.sampler

    def cycle_updates(self, *, embeds: bool) -> Sequence[Update]:
        return (Update("generator", (ForwardPass("generator", "regression", "weights"),)),)

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        return Toy(self.sigma, VelocityModel(teacher(model, placement)))


class Toy(Method):
    """Trains the role `generator`."""

    def __init__(self, sigma: float, generator: VelocityModel) -> None:
        super().__init__({"generator": generator})
        self.sigma = sigma

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        sigma = torch.full((len(batch.x0),), self.sigma)
        at = noised(batch.x0, rng.normal("eps", batch.x0.shape[1:]), sigma)
        v = networks[role](at.x_sigma, at.sigma, batch.conditions)
        loss = functional.mse_loss(v, velocity(batch.x0, at.eps))
        return Loss(loss, {"toy": loss.detach()})

    def validation_terms(
        self, networks: Networks, latents: Tensor, conditions: Conditions, rng: Rng
    ) -> dict[str, Tensor]:
        return {"toy_spread": latents.std()}


def recipe(runs: Path) -> Recipe:
    values = load_recipe("portrait-tiny-smoke").model_dump(exclude={"engine"})
    values["method"] = {"name": "toy", "sigma": 0.75}
    values["schedule"]["sample_every"] = 1
    values["cluster"]["num_workers"] = 1
    return Recipe.model_validate(values | {"engine": {"kind": "torch"}, "runs": str(runs)})


@pytest.fixture(scope="module", autouse=True)
def toy_registered() -> Iterator[None]:
    """Register the toy method for the tests of this module, and for no others."""
    with registries_restored():
        METHODS.register(ToyMethod)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A tracked run of two cycles on random latents."""
    folder = tmp_path_factory.mktemp("toy")
    cache = write_cache(folder / "cache", (16, 2, 4, 4), num_rows=4)
    made = recipe(folder / "runs")
    run = RunDirectory.create(folder / "runs", made)
    with Tracker.start(made.tracking, run) as tracker:
        with tracker.mirror():
            Worker(run, cache, cache, rank=0, world_size=1).run_all()
        tracker.note(describe(run))
    return run


def test_it_is_planned(tmp_path: Path) -> None:
    made = plan(recipe(tmp_path))
    assert made.samples_per_cycle == made.recipe.schedule.batch_size
    assert made.operations_per_cycle > made.video_operations > 0
    assert "regression" in {row.part for row in made.peaks["generator"]}
    assert format_plan(made).startswith("portrait-tiny-smoke: toy on 17x64x64@24")


def test_it_is_trained_by_the_loop_and_validated_with_its_sampler(trained: RunDirectory) -> None:
    rows = list(trained.metrics())
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["generator/toy"] > 0 and row["validation/toy_spread"] > 0
        assert not [name for name in row if name.startswith("critic/")]
    assert (trained.samples / "cycle-0000002.png").stat().st_size > 1000
    before = find_pretrained("teacher").transformer
    weights = "diffusion_pytorch_model.safetensors"
    after = trained.path / "model"
    assert (after / weights).read_bytes() != (before / weights).read_bytes()
    *teachers, own = variants(trained.recipe(), after)
    assert own.sampler.num_steps == 2 and {way.sampler.num_steps for way in teachers} == {2, 4}


def test_it_is_tracked(trained: RunDirectory) -> None:
    client = MlflowClient(f"sqlite:///{trained.path.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(trained.recipe().tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    found = next(run for run in runs if run.data.params.get("method.name") == "toy")
    assert found.info.run_name == f"distillation: {trained.path.name}"
    assert found.data.params["method.sigma"] == "0.75"
    assert found.data.tags["mlflow.note.content"].startswith("**Distillation to 2 steps** by `toy`")
    points = client.get_metric_history(found.info.run_id, "generator/toy")
    assert [point.value for point in points] == [row["generator/toy"] for row in trained.metrics()]


def test_it_is_reported(trained: RunDirectory) -> None:
    page = html.unescape(write_run_report(trained).read_text())
    assert "toy, sigma 0.75" in page and "finished" in page


def test_it_is_exported(trained: RunDirectory, tmp_path: Path) -> None:
    export(str(trained.path), tmp_path / "model", dtype="fp32")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| method | toy |" in card and "euler, 2 steps" in card
    assert find_pretrained(str(tmp_path / "model")).sampler.num_steps == 2
    with pytest.raises(ExportError, match="toy trains no LoRA"):
        export_lora(str(trained.path), tmp_path / "lora")
