"""A student leaves its run as files that peft, diffusers and ComfyUI read: a LoRA, or one file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import PRESETS, NetworkPreset
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.models.networks.weights import save_transformer
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.export.diffusers_pipeline import (
    ENCODERS,
    ORIGINAL_LORA,
    stock_scheduler,
)
from magicdistill.platform.export.export import (
    ORIGINAL,
    ExportError,
    export,
    export_lora,
    export_original,
)
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.tiny_run import tiny_recipe

STUDENTS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 3},
}


class Trained(NamedTuple):
    """A run with one checkpoint, the network in it, and the folder of its teacher."""

    run: RunDirectory
    student: nn.Module
    teacher: Path


@pytest.fixture(scope="module")
def preset() -> Iterator[str]:
    """Shapes without single-stream blocks: diffusers' converters know their width of 13B alone."""
    tiny = PRESETS["nano"]
    shapes = tiny.transformer.model_copy(update={"num_layers": 2, "num_single_layers": 0})
    PRESETS.register("double-only", NetworkPreset(transformer=shapes, vae=tiny.vae))
    yield "double-only"
    del PRESETS["double-only"]


@pytest.fixture(scope="module")
def runs(preset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """A run of each kind of student."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    shapes = PRESETS[preset].transformer
    save_transformer(build_transformer(shapes), folder / "teacher", torch.float32)
    return {kind: train(kind, preset, folder) for kind in STUDENTS}


def recipe_of(kind: str, preset: str, teacher: Path) -> Recipe:
    values = tiny_recipe(2).model_dump()
    values["model"] = {"preset": preset, "teacher": str(teacher)}
    values["method"] = {"name": "dmd", "student": STUDENTS[kind]}
    values |= {"name": kind, "evaluation": None}
    return Recipe.model_validate(values)


def train(kind: str, preset: str, folder: Path) -> Trained:
    """Give the student other weights than the teacher's, and save them and their average."""
    recipe = recipe_of(kind, preset, folder / "teacher")
    run = RunDirectory.create(folder, recipe, kind)
    student = recipe.method.build(recipe.model, WHOLE).modules["generator"]
    optimizer = recipe.schedule.optimizers["generator"]
    engine = build_engine(recipe.engine, student, optimizer, num_micro_batches=1)
    ema = Ema("generator", engine, 0.5)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    ema.update()
    Checkpoints(run.checkpoints, keep=1).save(1, {"generator": engine}, ema)
    for live, average in zip(ema.live, ema.average, strict=True):
        live.copy_(average)
    return Trained(run, student, folder / "teacher")


@torch.no_grad()
def velocity(network: Any) -> Tensor:
    """Run a transformer, or a velocity model, on fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 2, 4, 4, generator=generator)
    null = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    model = network if isinstance(network, VelocityModel) else VelocityModel(network)
    return model(x, torch.tensor([0.4, 0.9]), null)


def stock(folder: Path) -> Any:
    return HunyuanVideoTransformer3DModel.from_pretrained(folder)


def by_peft(teacher: Path, lora: Path) -> Any:
    base: Any = stock(teacher)
    return PeftModel.from_pretrained(base, str(lora)).get_base_model()


def by_pipeline(teacher: Path, lora: Path, **file: str) -> Any:
    base = stock(teacher)
    parts: Any = dict.fromkeys((*ENCODERS, "vae")) | {"scheduler": stock_scheduler(SamplerConfig())}
    pipeline: Any = HunyuanVideoImageToVideoPipeline(transformer=base, **parts)
    pipeline.load_lora_weights(lora, **file)
    assert pipeline.get_list_adapters() == {"transformer": ["default_0"]}
    return base


LOADERS: dict[str, Callable[[Path, Path], Any]] = {
    "peft": by_peft,
    "diffusers": by_pipeline,
    "original names": lambda teacher, lora: by_pipeline(teacher, lora, weight_name=ORIGINAL_LORA),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_the_stock_loaders_put_a_lora_student_on_its_teacher(loader, runs, tmp_path):
    run, student, teacher = runs["lora"]
    export_lora(str(run.path), tmp_path / "lora", of_student=True)
    expected = velocity(student)
    assert (expected - velocity(stock(teacher))).abs().max() > 0.05
    loaded = LOADERS[loader](teacher, tmp_path / "lora")
    torch.testing.assert_close(velocity(loaded), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_lora_student_is_merged_into_the_folder_that_diffusers_reads(kind, runs, tmp_path):
    run, student, _ = runs[kind]
    export(str(run.path), tmp_path / "model", dtype="fp32")
    loaded = stock(tmp_path / "model" / "transformer")
    torch.testing.assert_close(velocity(loaded), velocity(student), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", STUDENTS)
def test_one_file_has_the_original_names_of_a_full_and_of_a_lora_student(kind, runs, tmp_path):
    run, student, _ = runs[kind]
    export_original(str(run.path), tmp_path / "one", dtype="fp32")
    file = tmp_path / "one" / ORIGINAL
    export(str(run.path), tmp_path / "model", dtype="fp32")
    expected = dict(stock(tmp_path / "model" / "transformer").named_parameters())
    converted = load_file(file)
    assert {"img_in.proj.weight", "double_blocks.1.txt_attn_qkv.bias"} <= converted.keys()
    convert_hunyuan_video_transformer_to_diffusers(converted)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())
    loaded: Any = HunyuanVideoTransformer3DModel.from_single_file(
        str(file), config=str(tmp_path / "model"), subfolder="transformer"
    )
    own = load_transformer(file, run.recipe().model.shapes.transformer)
    for network in (loaded, own):
        torch.testing.assert_close(velocity(network), velocity(student), atol=1e-5, rtol=0)


def test_the_cards_of_a_lora_student_name_its_base_and_its_grid(runs, tmp_path):
    run, _, teacher = runs["lora"]
    export_lora(str(run.path), tmp_path / "lora", of_student=True)
    card = (tmp_path / "lora" / "README.md").read_text()
    assert f"base_model: {teacher}" in card and "flow shift is 5" in card
    export_original(str(run.path), tmp_path / "one")
    assert f"`{ORIGINAL}` holds" in (tmp_path / "one" / "README.md").read_text()


def test_a_full_student_is_exported_as_no_lora(runs, tmp_path):
    run = runs["full"].run
    with pytest.raises(ExportError, match=r"method\.student\.kind full\); leave --format out"):
        export_lora(str(run.path), tmp_path / "lora", of_student=True)
    with pytest.raises(ExportError, match="--format original --dtype int8: give fp16"):
        export_original(str(run.path), tmp_path / "one", dtype="int8")
