"""Embed the captions of clips with text encoders and write them as text shards of the cache."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from magicdistill.data_pipeline.config import Prompts
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.text_shards import TextRow, write_texts
from magicdistill.data_pipeline.rows import ClipRow, digest
from magicdistill.models.checksums import digest_ends
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT, Conditions
from magicdistill.models.networks.conditioning.encoder_folders import encoder_folders, image_folders

if TYPE_CHECKING:
    from magicdistill.models.networks.conditioning.prompt_encoder import AnyPromptEncoder

PROMPT_SCHEMA = pa.schema([("key", pa.string()), ("prompt", pa.string())])


@dataclass(frozen=True)
class EmbedJob:
    """Everything that an embedding process needs."""

    config: Prompts
    fingerprint: str
    """Fingerprint of the encoders for which the keys were made."""
    cache_root: AnyPath


def encoder_fingerprint(directory: Path | str, *, sees_images: bool = False) -> str:
    """Return a hash of the encoders in a folder: names, sizes and both ends of all their files.

    Raises:
        FileNotFoundError: if one of the folders of encoders and their preprocessing is missing.
    """
    root = Path(directory)
    folders = (*encoder_folders(root), *(image_folders(root) if sees_images else ()))
    if missing := [name for name in folders if not (root / name).is_dir()]:
        raise FileNotFoundError(f"text encoders {root}: no folder {', '.join(missing)}")
    files = sorted(file for name in folders for file in (root / name).rglob("*") if file.is_file())
    return digest_ends(root, files)


def prompts_fingerprint(config: Prompts) -> str:
    """Return the fingerprint of the encoders of a recipe; raises as `encoder_fingerprint`."""
    sees_images = config.image_token_stride is not None
    return encoder_fingerprint(config.encoder, sees_images=sees_images)


def text_key(prompt: str, config: Prompts, fingerprint: str) -> str:
    """Return the key of a prompt's embedding: a hash of everything that shapes it."""
    dtypes = f"{config.compute_dtype} {config.stored_dtype}"
    return digest(prompt, config.num_tokens, dtypes, fingerprint)


def prompts_of(clips: Iterable[ClipRow], config: Prompts, fingerprint: str) -> dict[str, str]:
    """Return the captions of clips, each once, and the null prompt, by key."""
    prompts = {clip.video.caption for clip in clips} | {NULL_PROMPT}
    return {text_key(prompt, config, fingerprint): prompt for prompt in sorted(prompts)}


class Embed:
    """Writes one text shard for each table of prompts and returns their keys."""

    def __init__(self, job: EmbedJob) -> None:
        self._config, self._root = job.config, job.cache_root
        self._encoder = load_encoder(job.config, job.fingerprint)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed a table of PROMPT_SCHEMA; return its column `key`."""
        rows = table.to_pylist()
        texts: dict[str, TextRow] = {}
        for first in range(0, len(rows), self._config.batch_size):
            batch = rows[first : first + self._config.batch_size]
            embedded = self._embed([row["prompt"] for row in batch])
            texts |= zip((row["key"] for row in batch), embedded, strict=True)
        write_texts(self._root, texts)
        return table.select(["key"])

    def _embed(self, prompts: list[str]) -> list[TextRow]:
        return text_rows(self._encoder(prompts), self._config)


def load_encoder(config: Prompts, fingerprint: str) -> "AnyPromptEncoder":
    """Load the encoders of a recipe, which still have the fingerprint that keys were made with."""
    from magicdistill.models.networks.conditioning.prompt_encoder import (
        PromptEncoder,  # imports language models
    )

    if prompts_fingerprint(config) != fingerprint:
        raise RuntimeError(f"the text encoders in {config.encoder} changed meanwhile")
    encoder = PromptEncoder.load(
        config.encoder,
        getattr(torch, config.compute_dtype),
        num_text_tokens=config.num_tokens,
        image_token_stride=config.image_token_stride or 1,
    )
    return encoder.to("cuda" if config.num_gpus_per_actor else "cpu")


def text_rows(found: Conditions, config: Prompts) -> list[TextRow]:
    """Return the embeddings of prompts, one each, as they are stored."""
    dtype = getattr(torch, config.stored_dtype)
    parts = {
        "tokens": found.text.to("cpu", dtype),
        "mask": found.text_mask.cpu(),
        "pooled": found.pooled.to("cpu", dtype),
    }
    if found.image_tokens is not None:
        parts["image_tokens"] = found.image_tokens.to("cpu", dtype)
    if found.glyphs is not None and found.glyph_mask is not None:
        parts |= {"glyphs": found.glyphs.to("cpu", dtype), "glyph_mask": found.glyph_mask.cpu()}
    rows = zip(*parts.values(), strict=True)
    return [TextRow(**dict(zip(parts, row, strict=True))) for row in rows]
