"""Captions as cached embeddings, made by small random encoders of the real classes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from tokenizers import processors
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from magicdistill.data_pipeline.config import NullText, Prompts
from magicdistill.data_pipeline.latents.cache import (
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.latents.shard_format import CacheError
from magicdistill.data_pipeline.latents.text_shards import committed_texts
from magicdistill.data_pipeline.stages.embed import (
    PROMPT_SCHEMA,
    Embed,
    EmbedJob,
    encoder_fingerprint,
    text_key,
)
from magicdistill.models.networks.conditioning.prompt_encoder import TEXT_TEMPLATE, PromptEncoder
from magicdistill.platform.data.batches import collate, is_dropped
from tests.integration.models.test_prompt_encoder import PROMPTS, fitted, word_tokenizer

NUM_TOKENS, WIDTH, POOLED = 8, 16, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder of text encoders."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders")
    sizes: dict[str, Any] = {"intermediate_size": 32, "num_attention_heads": 2}
    words = word_tokenizer("<|begin_of_text|>", "<|end_of_text|>")
    llama = LlamaConfig(vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=4, **sizes)
    LlamaModel(llama).save_pretrained(folder / "text_encoder")
    num_missing = TEXT_TEMPLATE.crop_start - fitted(TEXT_TEMPLATE, words).crop_start
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(["<|begin_of_text|>"] * (num_missing + 1)) + " $A",
        special_tokens=[("<|begin_of_text|>", words.convert_tokens_to_ids("<|begin_of_text|>"))],
    )
    words.save_pretrained(folder / "tokenizer")
    words = word_tokenizer("<bos>", "<eos>")
    clip = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=POOLED,
        num_hidden_layers=2,
        eos_token_id=words.convert_tokens_to_ids("<eos>"),
        **sizes,
    )
    CLIPTextModel(clip).save_pretrained(folder / "text_encoder_2")
    words.save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Prompts:
    return Prompts(encoder=str(folder), num_tokens=NUM_TOKENS, stored_dtype="float32", batch_size=2)


@pytest.fixture(scope="module")
def cache(folder: Path, config: Prompts, tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    """Return a cache of a row for each prompt, and of one for the null prompt."""
    root, name = tmp_path_factory.mktemp("latents"), encoder_fingerprint(folder)
    keys = [text_key(prompt, config, name) for prompt in ("", *PROMPTS)]
    table = pa.table({"key": keys, "prompt": ["", *PROMPTS]}, schema=PROMPT_SCHEMA)
    assert Embed(EmbedJob(config, name, root))(table).column("key").to_pylist() == keys
    assert committed_texts(root).keys() == set(keys)
    rows = [
        RowFacts(f"k{key}", "c", "s", "l", "portrait", "b", 0, False, text_key=key) for key in keys
    ]
    write_shard(root, [LatentRow(facts, torch.randn(4, 2, 4, 4)) for facts in rows])
    entries = committed_rows(root)
    return LatentCache(
        publish(root, [entries[row.key] for row in rows], NullText(), null_key=keys[0])
    )


def test_a_cached_prompt_is_what_the_encoder_says(cache: LatentCache, folder: Path):
    encoder = PromptEncoder.load(folder, torch.float32, num_text_tokens=NUM_TOKENS)
    for position, prompt in enumerate(["", *PROMPTS]):
        fresh, read = encoder([prompt]), cache.text(cache.read(position).text_key)
        mask = fresh.text_mask[0]
        assert read.tokens.shape == (NUM_TOKENS, WIDTH) and torch.equal(read.mask, mask)
        torch.testing.assert_close(read.tokens[mask], fresh.text[0][mask])
        torch.testing.assert_close(read.pooled, fresh.pooled[0])
        assert not read.tokens[~mask].any()


def test_the_null_prompt_is_the_encoders_and_takes_the_place_of_dropped_ones(cache: LatentCache):
    null = cache.text()
    assert torch.equal(null.pooled, cache.text(cache.read(0).text_key).pooled)
    batch = collate(cache, [1, 2], [1, 2], "cpu", [True, False])
    assert batch.conditions is not None and batch.null is not None
    assert torch.equal(batch.conditions.pooled[0], null.pooled)
    assert not torch.equal(batch.conditions.pooled[1], null.pooled)
    assert torch.equal(batch.null.pooled[1], null.pooled)


def test_prompts_are_dropped_by_position_in_the_recipes_share():
    dropped = [is_dropped(3, position, 0.1) for position in range(2000)]
    assert 150 < sum(dropped) < 250
    assert [is_dropped(3, position, 0.1) for position in range(50, 60)] == dropped[50:60]
    assert not any(is_dropped(3, position, 0.0) for position in range(20))


def test_other_encoders_make_other_keys_and_are_not_taken_for_the_old_ones(
    folder: Path, config: Prompts, tmp_path: Path
):
    before = encoder_fingerprint(folder)
    weights = folder / "text_encoder" / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert encoder_fingerprint(folder) != before
        with pytest.raises(RuntimeError, match="changed meanwhile"):
            Embed(EmbedJob(config, before, tmp_path))
    finally:
        weights.write_bytes(content)


def test_a_prompt_that_nobody_embedded_is_refused(cache: LatentCache):
    with pytest.raises(CacheError, match="no text embedding"):
        cache.text("unknown")


def test_keys_tell_in_which_formats_prompts_were_embedded(config: Prompts):
    others = [
        config.model_copy(update={"compute_dtype": "bfloat16"}),
        config.model_copy(update={"stored_dtype": "bfloat16"}),
    ]
    assert len({text_key("a prompt", prompts, "f") for prompts in (config, *others)}) == 3


def test_only_the_encoders_files_count_and_a_missing_folder_is_named(tmp_path: Path):
    for name in ("text_encoder", "tokenizer", "text_encoder_2"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "deeper" / "weights").write_text(name)
    with pytest.raises(FileNotFoundError, match="tokenizer_2"):
        encoder_fingerprint(tmp_path)
    (tmp_path / "tokenizer_2").mkdir()
    before = encoder_fingerprint(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "weights").touch()
    assert encoder_fingerprint(tmp_path) == before
    (tmp_path / "text_encoder" / "deeper" / "weights").write_text("others")
    assert encoder_fingerprint(tmp_path) != before
