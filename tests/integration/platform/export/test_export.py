"""A run's generator leaves it as a folder that diffusers reads."""

import json
import math
import os
import shutil
import weakref
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicdistill.models.locations import is_int8
from magicdistill.models.methods.cfg_distill import CfgDistillMethod
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.state_dicts import INDEX
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.models.networks.weights import write_transformer
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.checkpoints.checkpoint_folder import COMMITTED
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.export.diffusers_pipeline import ENCODERS, stock_scheduler
from magicdistill.platform.export.export import ExportError, export, export_lora
from magicdistill.platform.export.pretrained_model import find_pretrained
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.tiny_encoders import tiny_encoder

State = dict[str, Tensor]


class Trained:
    """A run with the checkpoints of two cycles, and its weights after the second."""

    def __init__(self, folder: Path) -> None:
        recipe = load_recipe("portrait-tiny-smoke", ["--engine.kind", "torch"])
        self.run = RunDirectory.create(folder, recipe)
        generator = recipe.method.build(recipe.model, WHOLE).modules["generator"]
        assert isinstance(generator, VelocityModel)
        optimizer = recipe.schedule.optimizers["generator"]
        engine = build_engine(recipe.engine, generator, optimizer, num_micro_batches=1)
        ema = Ema("generator", engine, 0.5)
        for cycle in (1, 2):
            with torch.no_grad():
                torch._foreach_add_(list(generator.parameters()), 0.125)
            ema.update()
            Checkpoints(self.run.checkpoints, keep=2).save(cycle, {"generator": engine}, ema)
            self.run.append_metrics(cycle, {"generator/dmd": cycle / 8})
        self.transformer = generator.transformer
        self.last = copy_of(generator.transformer)
        with ema.swapped():
            self.average = copy_of(generator.transformer)


def copy_of(module: torch.nn.Module) -> State:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def loaded(folder: Path) -> State:
    return copy_of(HunyuanVideoTransformer3DModel.from_pretrained(folder / "transformer"))


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> RunDirectory:
    """The same run, to be spoilt."""
    return RunDirectory(shutil.copytree(trained.run.path, tmp_path / "runs" / "copy"))


@pytest.fixture
def broken(copied: RunDirectory) -> Path:
    """The last checkpoint, truncated."""
    checkpoint = copied.checkpoints / "cycle-0000002"
    file = next((checkpoint / "generator").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])
    return checkpoint


@pytest.mark.parametrize("ema", [True, False])
def test_diffusers_loads_the_average_or_the_last_weights(trained, tmp_path, ema):
    export(str(trained.run.path), tmp_path / "model", ema=ema, dtype="fp32")
    assert_same(loaded(tmp_path / "model"), trained.average if ema else trained.last)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_is_written_has_the_permissions_of_any_new_file(trained, tmp_path, umask):
    before = os.umask(umask)
    try:
        export(str(trained.run.path), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o666 & ~umask}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}


def test_an_export_that_fails_leaves_nothing_behind(trained, tmp_path):
    (tmp_path / ".model.partial").mkdir()  # of somebody else
    with pytest.raises(FileNotFoundError):
        export(str(trained.run.path), tmp_path / "model", encoders=tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == [".model.partial"]


def test_a_run_is_found_by_name_and_written_in_shards(trained, tmp_path):
    runs = str(trained.run.path.parent)
    export("latest", tmp_path, runs=runs, dtype="fp32", max_file_bytes=2**20)
    assert (tmp_path / "transformer" / INDEX).is_file()
    assert_same(loaded(tmp_path), trained.average)


def test_a_given_checkpoint_is_exported_with_a_card(trained, tmp_path):
    export(str(trained.run.checkpoints / "cycle-0000001"), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for text in ("1 of 2", "average, decay 0.97", "1000.0, 937.5, 833.3, 625.0", "| 0.125 |"):
        assert text in card
    for text in ("assets/portrait-tiny/teacher", "- portrait-world: Apache-2.0"):
        assert text in card.partition("## Licence")[2]
    files = [path.name for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {Path(name).suffix for name in files} == {".json", ".md", ".safetensors", ".yaml"}
    assert (tmp_path / "model" / "recipe.yaml").read_text() == trained.run.recipe_path.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_int8_halves_the_files_and_is_sampled_by_its_folder(trained, tmp_path):
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    tiny_encoder(64).save(tmp_path / "encoders")
    for dtype in ("bf16", "int8"):
        export(str(trained.run.path), tmp_path / dtype, dtype=dtype, encoders=tmp_path / "encoders")
    sizes = {
        dtype: sum(
            path.stat().st_size for path in (tmp_path / dtype).glob("transformer/*.safetensors")
        )
        for dtype in ("bf16", "int8")
    }
    assert sizes["int8"] < 0.55 * sizes["bf16"]
    assert "in int8" in (tmp_path / "int8" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bf16", "encoders", "int8"]
    found = find_pretrained(str(tmp_path / "int8"))
    assert (found.dtype, found.encoders) == ("int8", tmp_path / "int8")
    assert is_int8(tmp_path / "int8" / "text_encoder")


def test_one_file_at_a_time_is_in_memory(trained, tmp_path):
    alive = peak = 0
    limit = 2**20

    def read(name: str) -> Tensor:
        nonlocal alive, peak
        tensor = trained.last[name].clone()
        alive += tensor.nbytes
        peak = max(peak, alive)
        weakref.finalize(tensor, forget, tensor.nbytes)
        return tensor

    def forget(size: int) -> None:
        nonlocal alive
        alive -= size

    folder = tmp_path / "transformer"
    write_transformer(trained.transformer, folder, read, torch.float32, max_file_bytes=limit)
    assert limit / 2 < peak <= limit + max(tensor.nbytes for tensor in trained.last.values())
    assert_same(loaded(tmp_path), trained.last)


def test_a_damaged_checkpoint_is_passed_over_and_stays(copied, broken, tmp_path):
    said = []
    export(str(copied.path), tmp_path / "model", say=said.append)
    assert "cycle-0000002 is damaged" in said[0] and "cycle 1" in said[1]
    assert (broken / COMMITTED).exists()


def test_a_damaged_checkpoint_is_refused_by_name(broken, tmp_path):
    with pytest.raises(ExportError, match=r"damaged.*give the run"):
        export(str(broken), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_copy_of_a_checkpoint_is_not_exported(copied, tmp_path):
    newest = copied.checkpoints / "cycle-0000002"
    copy = Path(shutil.copytree(newest, copied.checkpoints / "cycle-0000002-backup"))
    said = []
    export(str(copied.path), tmp_path / "model", say=said.append)
    assert len(said) == 1 and "cycle 2" in said[0]
    with pytest.raises(ExportError, match="no complete checkpoint: give a folder named"):
        export(str(copy), tmp_path / "other")


@pytest.mark.parametrize(
    ("value", "way"), [(70_000.0, "float16: give --dtype bf16"), (math.nan, "an older checkpoint")]
)
def test_weights_that_the_files_cannot_hold_are_not_exported(copied, tmp_path, value, way):
    file = copied.checkpoints / "cycle-0000002" / "generator" / "rank-00000.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.startswith("weight/"))
    state[name][0] = value
    save_file(state, file)
    with pytest.raises(ExportError, match=way):
        export(str(commit(file.parents[1])), tmp_path / "model", ema=False)
    assert not (tmp_path / "model").exists()


def commit(checkpoint: Path) -> Path:
    """Let the marker vouch for the files as they are."""
    content = json.loads((checkpoint / COMMITTED).read_text())
    for name in content["files"]:
        data = (checkpoint / name).read_bytes()
        content["files"][name] = [len(data), zlib.crc32(data)]
    (checkpoint / COMMITTED).write_text(json.dumps(content))
    return checkpoint


def test_a_folder_with_something_in_it_is_left_alone(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        export(str(trained.run.path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_role_without_a_network_of_its_own_is_refused(trained, tmp_path):
    with pytest.raises(ExportError, match="generator, critic, and of these generator"):
        export(str(trained.run.path), tmp_path / "model", role="critic")


def test_a_run_without_checkpoints_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path, load_recipe("portrait-tiny-smoke"))
    with pytest.raises(ExportError, match="no complete checkpoint"):
        export(str(run.path), tmp_path / "model")


def test_a_checkpoint_of_another_network_is_refused(copied, tmp_path):
    method = CfgDistillMethod(name="cfg-distill")
    copied.store(copied.recipe().model_copy(update={"method": method}))
    with pytest.raises(ExportError, match=r"lacks.*guidance_embedder"):
        export(str(copied.path), tmp_path / "model")


def test_the_branch_alone_goes_onto_the_teacher_by_peft_and_by_diffusers(copied, tmp_path):
    recipe = copied.recipe()
    critic = recipe.method.build(recipe.model, WHOLE).modules["critic"]
    assert isinstance(critic, Critic)
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    optimizer = recipe.schedule.optimizers["critic"]
    engine = build_engine(recipe.engine, critic, optimizer, num_micro_batches=1)
    Checkpoints(copied.checkpoints, keep=1).save(2, {"critic": engine}, None)
    export_lora(str(copied.path), tmp_path / "lora")

    teacher = find_pretrained("teacher").transformer
    base: Any = load_transformer(teacher)
    by_peft: Any = PeftModel.from_pretrained(base, str(tmp_path / "lora")).get_base_model()
    by_diffusers = HunyuanVideoTransformer3DModel.from_pretrained(teacher)
    by_diffusers.load_lora_adapter(
        tmp_path / "lora", weight_name="adapter_model.safetensors", prefix="base_model.model"
    )
    whole: Any = HunyuanVideoTransformer3DModel.from_pretrained(teacher)
    parts: Any = dict.fromkeys((*ENCODERS, "vae")) | {"scheduler": stock_scheduler(SamplerConfig())}
    pipeline: Any = HunyuanVideoImageToVideoPipeline(transformer=whole, **parts)
    pipeline.load_lora_weights(tmp_path / "lora")
    assert pipeline.get_list_adapters() == {"transformer": ["default_0"]}
    torch.manual_seed(0)
    x, sigma = torch.randn(1, 16, 2, 4, 4), torch.tensor([0.8])
    null = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    others = (by_peft, by_diffusers, whole)
    with torch.no_grad():
        own = critic.score(x, sigma, null)
        plain = VelocityModel(load_transformer(teacher))(x, sigma, null)
        assert (own - plain).abs().max() > 0.1
        for other in others:
            found = VelocityModel(other)(x, sigma, null)
            torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
        by_diffusers.set_adapters(by_diffusers.active_adapters(), 0.25)
        with lora_strength(critic, 0.25):
            weak = critic.score(x, sigma, null)
        torch.testing.assert_close(
            VelocityModel(by_diffusers)(x, sigma, null), weak, atol=1e-5, rtol=0
        )
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "from diffusers import HunyuanVideoTransformer3DModel\n" in card
    assert "pipeline.load_lora_weights" in card
    assert "base_model: assets/portrait-tiny/teacher" in card and "0.25" in card


def test_a_method_without_a_branch_exports_none(copied, tmp_path):
    method = CfgDistillMethod(name="cfg-distill")
    copied.store(copied.recipe().model_copy(update={"method": method}))
    with pytest.raises(ExportError, match="cfg-distill trains no LoRA"):
        export_lora(str(copied.path), tmp_path / "lora")
