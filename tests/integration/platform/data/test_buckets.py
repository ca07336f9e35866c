"""Two shapes in one data set: batches, training and plans."""

from pathlib import Path

import pytest
import torch

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.models.methods.magic_gt import MagicGtMethod
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    copy_transformer,
)
from magicdistill.models.objectives.distribution_matching import DistributionMatching
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import OptimizerConfig, ScheduleConfig, TorchEngineConfig
from magicdistill.platform.data.batches import LatentBatches, deal
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.planning.plan import plan
from magicdistill.platform.planning.plan_table import format_plan
from magicdistill.platform.training.loop import Loop
from tests.tiny import tiny_shapes

SHAPES = {"5x64x32@24": (16, 2, 8, 4), "9x32x48@24": (16, 3, 4, 6)}
"""Latents by bucket."""
TEXT = NullText(num_tokens=2, token_dim=6, pooled_dim=6)
OPTIMIZER = OptimizerConfig(lr=1e-3)
SCHEDULE = ScheduleConfig(
    num_cycles=1,
    batch_size=4,
    num_micro_batches=2,
    optimizers={"generator": OPTIMIZER, "critic": OPTIMIZER},
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> AnyPath:
    """Ten rows, of two buckets in turn."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cache")
    rows = [
        LatentRow(
            RowFacts(str(i), str(i), "s", "l", "portrait", bucket, 0, False),
            torch.randn(SHAPES[bucket]),
        )
        for i, bucket in enumerate(5 * list(SHAPES))
    ]
    write_shard(folder, rows)
    return publish(folder, list(committed_rows(folder).values()), TEXT)


def open_rank(cache: AnyPath, rank: int, world_size: int) -> LatentBatches:
    positions = deal(SCHEDULE, 1, rank=rank, world_size=world_size)
    return LatentBatches(cache, positions, 3, "cpu")


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_update_has_one_shape_on_all_ranks_and_resumes_alike(cache: AnyPath, world_size: int):
    ranks = [open_rank(cache, rank, world_size) for rank in range(world_size)]
    alone = open_rank(cache, 0, 1)
    seen = set()
    for step in (*range(12), 3):
        parts = [batches(step, micro).x0 for micro in range(2) for batches in ranks]
        expected = [alone(step, micro).x0 for micro in range(2)]
        assert torch.equal(torch.cat(parts), torch.cat(expected))
        seen.add(tuple(parts[0].shape[1:]))
    assert seen == set(SHAPES.values())


def test_training_goes_through_both_shapes(cache: AnyPath):
    torch.manual_seed(0)
    base = build_transformer(tiny_shapes(latent_channels=16))
    generator = VelocityModel(copy_transformer(base))
    critic = Critic(base, LoraConfig(rank=2), adversarial=True)
    config = MagicGtMethod(name="magic-gt", num_fake_updates=1, ground_truth_weight=0.2)
    method = DistributionMatching(config, generator, critic)
    engines = {
        role: build_engine(TorchEngineConfig(), module, OPTIMIZER, num_micro_batches=2)
        for role, module in method.modules.items()
    }
    batches, seen = open_rank(cache, 0, 1), []

    def record(step: int, micro: int):
        batch = batches(step, micro)
        seen.append(tuple(batch.x0.shape[1:]))
        return batch

    loop = Loop(method, engines, record, seed=0, num_micro_batches=2)
    for cycle in range(6):
        loop.cycle(cycle)  # raises where a loss or a gradient is no finite number
    assert set(seen) == set(SHAPES.values())


def test_held_out_clips_and_a_vaes_have_one_shape(base: Path):
    other = "{num_frames: 17, height: 64, width: 128}"
    recipe = base.read_text()
    sources = "sources: [{kind: portrait-world, num_clips: 5}]"
    base.write_text(f"{recipe}evaluation: {{data: {{{sources}, other_buckets: [{other}]}}}}\n")
    with pytest.raises(RecipeError, match=r"evaluation: .*data\.other_buckets: held-out"):
        load_recipe(base)
    base.write_text(recipe.replace("5}]", f"5}}], other_buckets: [{other}]"))
    assert len(load_recipe(base).data.buckets) == 2
    base.write_text(base.read_text().replace("{name: magic, alpha_weak: 0.5}", "{name: vae}"))
    with pytest.raises(RecipeError, match=r"data\.other_buckets: a VAE trains on one shape"):
        load_recipe(base)


def test_a_plan_is_for_the_largest_bucket_and_all_have_to_divide(tmp_path: Path):
    path = tmp_path / "both.yaml"
    text = "extends: magic141-4step-8xh100\ndata: {{other_buckets: [{{{}, fps: 24}}]}}\n"
    path.write_text(text.format("num_frames: 65, height: 960, width: 544"))
    alone, both = plan(load_recipe("magic141-4step-8xh100")), plan(load_recipe(path))
    assert both.sample == alone.sample and both.gpu_bytes == alone.gpu_bytes
    assert "129x544x960@24 and 65x960x544@24" in format_plan(both)
    path.write_text(text.format("num_frames: 145, height: 960, width: 544"))
    assert plan(load_recipe(path)).sample.video_tokens > alone.sample.video_tokens
    path.write_text(text.format("num_frames: 65, height: 720, width: 720"))
    with pytest.raises(RecipeError, match=r"video tokens of 65x720x720@24 do not divide"):
        plan(load_recipe(path))
