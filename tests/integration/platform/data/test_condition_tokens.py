"""Tokens of pictures and quoted words travel from the encoders through the cache into networks."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, WanImageToVideoPipeline
from PIL import Image

from magicdistill.data_pipeline.config import DataConfig, NullText
from magicdistill.data_pipeline.latents.cache import (
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.latents.text_shards import TextRow, write_texts
from magicdistill.data_pipeline.stages.embed import prompts_fingerprint
from magicdistill.data_pipeline.stages.embed_first_frames import (
    EmbedFirstFrames,
    EmbedFirstFramesJob,
)
from magicdistill.models.networks.conditioning.prompt_encoder import PromptEncoder
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.data.batches import collate, demand_glyphs, demand_image_tokens
from magicdistill.platform.runs.logs import ExplainedError
from tests.integration.models.test_hunyuan_video15_encoder import (
    encoder_of,
    encoders,  # noqa: F401 a fixture
)
from tests.integration.models.test_wan_encoder import folder  # noqa: F401 a fixture
from tests.tiny import tiny_wan
from tests.tiny15 import tiny15_shapes

PROMPT = 'A sign says "Open".'
FRAME = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)


def cached(root: Path, encoder: Path, num_tokens: int) -> tuple[LatentCache, DataConfig]:
    """Return a cache with one row, embedded as curation embeds it beside its first frame."""
    prompts = {
        "encoder": str(encoder),
        "num_tokens": num_tokens,
        "image_token_stride": 1,
        "stored_dtype": "float32",
    }
    source: dict[str, Any] = {
        "kind": "folder",
        "path": str(root),
        "mixture": "general",
        "license": "CC0",
    }
    config = DataConfig.model_validate({"sources": [source], "prompts": prompts})
    assert config.prompts is not None
    job = EmbedFirstFramesJob(config, prompts_fingerprint(config.prompts), root)
    (text,) = EmbedFirstFrames(job)._rows([FRAME], PROMPT)
    return cache_of(root, text), config


def cache_of(root: Path, text: TextRow) -> LatentCache:
    write_texts(root, {"text": text})
    latents = torch.randn(4, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    facts = RowFacts("row", "clip", "source", "CC0", "a", "9x32x64", 0, False, "text")
    write_shard(root, [LatentRow(facts, latents)])
    null = NullText(num_tokens=4, token_dim=6, pooled_dim=0)
    return LatentCache(publish(root, [*committed_rows(root).values()], null))


@pytest.fixture(scope="module")
def wan(request: Any, tmp_path_factory: Any) -> tuple[LatentCache, DataConfig]:
    """A cache of Wan 2.1."""
    return cached(tmp_path_factory.mktemp("wan"), request.getfixturevalue("folder"), 16)


@pytest.fixture(scope="module")
def hunyuan15(request: Any, tmp_path_factory: Any) -> tuple[LatentCache, DataConfig]:
    """A cache of HunyuanVideo-1.5."""
    folder15 = tmp_path_factory.mktemp("encoders15")
    encoder_of(request.getfixturevalue("encoders")).save(folder15)
    return cached(tmp_path_factory.mktemp("hunyuan15"), folder15, 600)


def test_a_batch_of_wan_carries_what_the_stock_pipeline_sees_of_the_picture(
    wan: tuple[LatentCache, DataConfig],
) -> None:
    cache, config = wan
    assert config.prompts is not None
    encoder: Any = PromptEncoder.load(config.prompts.encoder, torch.float32)
    parts = SimpleNamespace(
        image_processor=encoder.image_processor,
        image_encoder=encoder.image_encoder,
        _execution_device="cpu",
    )
    stock: Any = WanImageToVideoPipeline
    with torch.no_grad():
        expected = stock.encode_image(parts, Image.fromarray(FRAME[0]))
    for conditions in both(collate(cache, [0], [0], "cpu")):
        torch.testing.assert_close(conditions.image_tokens, expected, atol=1e-5, rtol=1e-5)
        assert conditions.glyphs is None


@torch.no_grad()
def test_a_batch_of_hunyuan15_carries_the_stock_pipelines_picture_and_quoted_words(
    hunyuan15: tuple[LatentCache, DataConfig],
) -> None:
    cache, config = hunyuan15
    assert config.prompts is not None
    encoder: Any = PromptEncoder.load(config.prompts.encoder, torch.float32)
    stock: Any = HunyuanVideo15ImageToVideoPipeline
    picture = stock._get_image_embeds(
        encoder.siglip, encoder.image_processor, Image.fromarray(FRAME[0]), torch.device("cpu")
    )
    pair = zip(both(collate(cache, [0], [0], "cpu")), (PROMPT, ""), strict=True)
    for conditions, prompt in pair:
        torch.testing.assert_close(conditions.image_tokens, picture, atol=1e-5, rtol=1e-5)
        glyphs, mask = stock._get_byt5_prompt_embeds(
            encoder.byt5_tokenizer, encoder.byt5, [prompt], torch.device("cpu"), 256
        )
        valid = mask.bool()
        assert torch.equal(conditions.glyph_mask, valid) and bool(valid.any()) == bool(prompt)
        torch.testing.assert_close(conditions.glyphs[valid], glyphs[valid], atol=1e-5, rtol=1e-5)


def both(batch: Batch) -> Iterator[Any]:
    """Yield the conditions of a batch and its null prompt."""
    yield from (batch.conditions, batch.null)


def test_networks_read_the_tokens_of_a_batch(
    wan: tuple[LatentCache, DataConfig], hunyuan15: tuple[LatentCache, DataConfig]
) -> None:
    shapes15 = tiny15_shapes(
        text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=8, num_text_tokens=600
    )
    for (cache, _), shapes, names in (
        (wan, tiny_wan(image_dim=6), ["image_tokens"]),
        (hunyuan15, shapes15, ["image_tokens", "glyphs"]),
    ):
        torch.manual_seed(0)
        model = VelocityModel(build_transformer(shapes))
        batch = collate(cache, [0], [0], "cpu")
        assert batch.conditions is not None
        tokens = [getattr(batch.conditions, name).requires_grad_() for name in names]
        velocity = model(torch.randn_like(batch.x0), torch.tensor([0.5]), batch.conditions)
        (velocity - batch.x0).square().mean().backward()
        assert all(one.grad is not None and one.grad.abs().max() > 0 for one in tokens), names


def test_a_cache_without_the_tokens_stays_readable_and_is_refused_where_they_are_needed(
    hunyuan15: tuple[LatentCache, DataConfig], tmp_path: Path
) -> None:
    old = cache_of(tmp_path, TextRow(torch.ones(4, 6), torch.ones(4).bool(), torch.zeros(0)))
    conditions = collate(old, [0], [0], "cpu").conditions
    assert conditions is not None and conditions.glyphs is None
    cache, config = hunyuan15
    for demand, message in (
        (demand_glyphs, r"data\.prompts\.encoder .* has no glyphs.*jobs/curate\.py"),
        (demand_image_tokens, r"data\.prompts\.image_token_stride 1: .* has no image tokens"),
    ):
        demand(cache, config.prompts, "data")
        demand(old, None, "data")
        with pytest.raises(ExplainedError, match=message):
            demand(old, config.prompts, "data")


def test_other_strides_than_one_are_refused_by_encoders_that_keep_all(
    wan: tuple[LatentCache, DataConfig],
) -> None:
    prompts = wan[1].prompts
    assert prompts is not None
    with pytest.raises(ValueError, match=r"image_token_stride 2: .* give 1"):
        PromptEncoder.load(prompts.encoder, torch.float32, image_token_stride=2)
