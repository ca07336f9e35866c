"""Embeddings of prompts in a latent cache: committed shards with one prompt per row group.

They lie apart from the latents because clips share captions: a prompt is embedded and stored once,
and each row of latents names it by its key. Where the encoder sees first frames too, each window
has an embedding of its own, and in the same row group that of the null prompt beside its frame.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    local_copy,
    open_parquet,
    read_tables,
)
from magicdistill.data_pipeline.latents.shard_format import (
    BLOB_FIELDS,
    SHARD_INDEX,
    CacheError,
    commit_shard,
    from_blob,
    to_blob,
)

NULL_TEXT = "null"
"""Key of the zero embedding that stands for the null prompt where no encoder makes one."""
TEXT_SCHEMA = pa.schema([("key", pa.string()), ("part", pa.string()), *BLOB_FIELDS])
TEXT_INDEX_SCHEMA = pa.schema(
    [("key", pa.string()), ("shard", pa.string()), ("row_group", pa.int64())]
)
_NULL = "null_"
"""Prefix of the parts that are the null prompt's."""


@dataclass(frozen=True)
class TextRow:
    """The embedding of one prompt."""

    tokens: Float[Tensor, "n d"]
    """Text tokens; valid ones come first, and padding is zeros when it is read."""
    mask: Bool[Tensor, " n"]
    """Which tokens are valid."""
    pooled: Float[Tensor, " p"]
    """The pooled embedding of the whole prompt."""
    image_tokens: Float[Tensor, "m i"] | None = None
    """Tokens of the first frame that the encoder saw before the prompt, all valid; None if none."""
    null: "TextRow | None" = None
    """The null prompt beside the same first frame; None where none was seen."""
    glyphs: Float[Tensor, "q e"] | None = None
    """Tokens of quoted words (HunyuanVideo-1.5), valid ones first; None if the encoder has none."""
    glyph_mask: Bool[Tensor, " q"] | None = None
    """Which glyphs are valid; none may be."""

    @property
    def is_sound(self) -> bool:
        """Whether a token is valid, as attention demands, and all numbers are finite."""
        others = [part for part in (self.image_tokens, self.glyphs) if part is not None]
        own = bool(self.mask.any() and self.tokens[self.mask].isfinite().all())
        own = own and all(bool(part.isfinite().all()) for part in others)
        return own and (self.null is None or self.null.is_sound)


def write_texts(root: AnyPath, texts: Mapping[str, TextRow]) -> str:
    """Write and commit embeddings of prompts, by key, as one shard; padding is not stored.

    Raises:
        CacheError: if an embedding has no valid token, which attention cannot take, or is not
            finite; nothing is written then.
    """
    for key, text in texts.items():
        if not text.is_sound:
            raise CacheError(f"text {key!r} has no valid token or one that is not finite")
    records = [record for key, text in texts.items() for record in text_records(key, text)]
    return _commit_texts(root, list(texts), pa.Table.from_pylist(records, schema=TEXT_SCHEMA))


def _commit_texts(root: AnyPath, keys: Sequence[str], table: pa.Table) -> str:
    """Commit rows of which as many belong to each key: its parts.

    They are one row group, so that a random read is one request.
    """
    return commit_shard(
        root / "texts",
        [{"key": key} for key in keys],
        table,
        rows_per_group=len(table) // len(keys),
        index_schema=TEXT_INDEX_SCHEMA,
    )


def rewrite_texts(root: AnyPath, name: str, without: Collection[str]) -> None:
    """Commit a new shard with the texts of an old one except some keys; the old one stays."""
    with pq.ParquetFile(local_copy(root / "texts" / f"{name}.parquet")) as file:
        num_parts = file.metadata.row_group(0).num_rows
        keys = file.read(columns=["key"])["key"].to_pylist()[::num_parts]
        kept = [position for position, key in enumerate(keys) if key not in without]
        if kept:
            _commit_texts(root, [keys[i] for i in kept], file.read_row_groups(kept))


def read_index_of_texts(root: AnyPath) -> pa.Table:
    """Return the index entries of all committed shards of prompts' embeddings."""
    return read_tables(root / "texts", f"*{SHARD_INDEX}", TEXT_INDEX_SCHEMA)


def committed_texts(root: AnyPath, without: Collection[str] = ()) -> dict[str, dict[str, object]]:
    """Return the index entry of every committed text by key, ignoring the shards in `without`."""
    entries = read_index_of_texts(root).to_pylist()
    return {entry["key"]: entry for entry in entries if entry["shard"] not in without}


def zero_text(text: NullText) -> TextRow:
    """Return the null prompt of `Conditions.null`: zeros, one valid token, the others masked."""
    return TextRow(
        tokens=torch.zeros(text.num_tokens, text.token_dim),
        mask=torch.arange(text.num_tokens) == 0,
        pooled=torch.zeros(text.pooled_dim),
    )


def text_records(key: str, text: TextRow) -> list[dict[str, object]]:
    """Return an embedding as the rows of one row group; only valid tokens are stored."""
    return [{"key": key, "part": name} | to_blob(part) for name, part in _parts(text).items()]


def _parts(text: TextRow) -> dict[str, Tensor]:
    num_valid = int(text.mask.sum())
    parts = {"tokens": text.tokens[:num_valid], "mask": text.mask.float(), "pooled": text.pooled}
    if text.image_tokens is not None:
        parts["image_tokens"] = text.image_tokens
    if text.glyphs is not None and text.glyph_mask is not None:
        num_glyphs = int(text.glyph_mask.sum())
        parts |= {"glyphs": text.glyphs[:num_glyphs], "glyph_mask": text.glyph_mask.float()}
    if text.null is not None:  # the image tokens stand first, so that no prompt changes them
        null = replace(text.null, image_tokens=None)
        parts |= {f"{_NULL}{name}": part for name, part in _parts(null).items()}
    return parts


def open_text_shard(root: AnyPath, entry: dict[str, object]) -> pq.ParquetFile:
    """Open the shard that an index entry names; the caller closes it."""
    return open_parquet(root / "texts" / f"{entry['shard']}.parquet")


def read_text(file: pq.ParquetFile, entry: dict[str, object]) -> TextRow:
    """Read the text that an index entry names; padding tokens are zeros.

    Raises:
        CacheError: if the file holds another text there, or it does not match its checksum.
    """
    parts: dict[str, Tensor] = {}
    for record in file.read_row_group(entry["row_group"]).to_pylist():
        where = f"{record['part']} of text {record['key']!r}"
        if record["key"] != entry["key"]:
            raise CacheError(f"{where} is not the text {entry['key']!r} that the index names")
        parts[record["part"]] = from_blob(record, where)
    image = parts.get("image_tokens")
    null = _row(parts, image, _NULL) if f"{_NULL}tokens" in parts else None
    return replace(_row(parts, image), null=null)


def _row(parts: Mapping[str, Tensor], image_tokens: Tensor | None, prefix: str = "") -> TextRow:
    tokens, mask, pooled = (parts[f"{prefix}{name}"] for name in ("tokens", "mask", "pooled"))
    row = TextRow(_padded(tokens, len(mask)), mask.bool(), pooled, image_tokens)
    if (glyphs := parts.get(f"{prefix}glyphs")) is None:
        return row
    glyph_mask = parts[f"{prefix}glyph_mask"]
    return replace(row, glyphs=_padded(glyphs, len(glyph_mask)), glyph_mask=glyph_mask.bool())


def _padded(tokens: Tensor, count: int) -> Tensor:
    return torch.cat([tokens, tokens.new_zeros(count - len(tokens), tokens.shape[1])])
