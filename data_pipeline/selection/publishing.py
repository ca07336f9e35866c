"""Publish a version of the latent cache that lists the windows of accepted clips."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import count, repeat
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.query import text
from magicdistill.data_pipeline.io.storage import AnyPath, write_batches
from magicdistill.data_pipeline.latents.cache import publish, read_index
from magicdistill.data_pipeline.latents.shard_format import CacheError
from magicdistill.data_pipeline.latents.text_shards import NULL_TEXT, read_index_of_texts
from magicdistill.data_pipeline.rows import ClipRow, clips_from_table
from magicdistill.data_pipeline.selection.curation_result import CurationResult, Selection
from magicdistill.data_pipeline.selection.judged_clips import (
    BATCH_ROWS,
    ClipTable,
    JudgedClips,
)
from magicdistill.data_pipeline.stages.embed import (
    PROMPT_SCHEMA,
    EmbedJob,
    prompts_fingerprint,
    text_key,
)
from magicdistill.data_pipeline.stages.embed_first_frames import first_frame_keys
from magicdistill.data_pipeline.stages.encode import facts_of
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT

logger = logging.getLogger(__name__)

_OF_THE_CLIP = ("clip_id", "source_id", "license", "mixture", "text_key")
_KEY_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("key", pa.string()),
        *((column, pa.string()) for column in _OF_THE_CLIP),
    ]
)


class NothingAcceptedError(ValueError):
    """No clip of a config is accepted; the message has the most frequent reasons."""


class WantedRows:
    """The rows of the cache that the accepted clips of a config need, in order, as a table."""

    def __init__(
        self, judged: JudgedClips, config: DataConfig, vae_fingerprint: str, path: Path
    ) -> None:
        """Write the keys of all rows to a file."""
        self._db = judged.database
        write_batches(_keys(judged, config, vae_fingerprint), _KEY_SCHEMA, path)
        self.sql = self._db.files([path])

    def most_per_clip(self) -> int:
        """Return the largest number of rows that one clip needs; 0 without any."""
        counts = f"SELECT count(*) AS n FROM {self.sql} GROUP BY clip_id"
        return self._db.value(f"SELECT coalesce(max(n), 0) FROM ({counts})")

    def write_missing(self, present: pa.Table, path: Path, others: Sequence[Path]) -> None:
        """Write the ids of the clips of which a row is not `present`, except those in `others`."""
        rows = f"FROM {self.sql} ANTI JOIN present USING (key)"
        for other in others:
            rows = f"FROM ({rows}) ANTI JOIN {self._db.files([other])} USING (clip_id)"
        with self._db.named(present=present):
            self._db.write(f"SELECT DISTINCT clip_id FROM ({rows})", path)

    def write_without_text(self, cache_root: AnyPath, path: Path) -> None:
        """Write the ids of the clips of which a row's embedding is not in the cache."""
        rows = f"{self.sql} AS w ANTI JOIN present ON w.text_key = present.key"
        with self._db.named(present=read_index_of_texts(cache_root)):
            self._db.write(f"SELECT DISTINCT clip_id FROM {rows}", path)

    def entries(self, cache_root: AnyPath) -> pa.Table:
        """Return the index entries of all rows, with what the clips of this config say of them.

        Raises:
            CacheError: if the cache lacks one.
        """
        own = ", ".join(f"w.{column} AS {column}" for column in _OF_THE_CLIP)
        with self._db.named(present=read_index(cache_root)):
            found = self._db.table(
                f"SELECT p.* REPLACE ({own}) FROM {self.sql} AS w JOIN (FROM present QUALIFY "
                "row_number() OVER (PARTITION BY key ORDER BY shard DESC, row_group DESC) = 1) "
                "AS p USING (key) ORDER BY position"
            )
        wanted = self._db.value(f"SELECT count(*) FROM {self.sql}")
        if len(found) != wanted:
            raise CacheError(f"the cache has only {len(found)} of {wanted} rows that were encoded")
        return found


def _keys(
    judged: JudgedClips, config: DataConfig, vae_fingerprint: str
) -> Iterator[pa.RecordBatch]:
    positions, prompts = count(), config.prompts
    encoders = prompts_fingerprint(prompts) if prompts else ""
    for table in judged.tables("status = 'accepted'"):
        rows = [
            {
                "position": next(positions),
                "key": facts.key,
                "clip_id": clip.clip_id,
                "source_id": clip.video.source_id,
                "license": clip.video.license,
                "mixture": clip.video.mixture,
                "text_key": key,
            }
            for clip in clips_from_table(table)
            for facts, key in zip(
                facts_of(clip, config, vae_fingerprint),
                _text_keys(clip, config, encoders),
                strict=False,  # a key for all rows is repeated without end
            )
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=_KEY_SCHEMA)


def _text_keys(clip: ClipRow, config: DataConfig, encoders: str) -> Iterable[str]:
    """Return the keys of the embeddings of a clip's rows; one for all of them is repeated."""
    prompts = config.prompts
    if prompts is None:
        return repeat(NULL_TEXT)
    if prompts.image_token_stride is None:
        return repeat(text_key(clip.video.caption, prompts, encoders))
    return first_frame_keys(clip, config, encoders)


def write_missing_prompts(clips: ClipTable, job: EmbedJob, path: Path) -> None:
    """Write the accepted clips' captions of which the cache has no embedding, each once, by key;
    the null prompt is one of them."""
    db, captions = clips.database, path.with_name(f"captions-{path.name}")
    clips.write_distinct("caption", "status = 'accepted'", captions)

    def keyed() -> Iterator[pa.RecordBatch]:
        query = f"SELECT caption FROM {db.files([captions])} UNION SELECT {text(NULL_PROMPT)}"
        for batch in db.batches(query, BATCH_ROWS):
            prompts = batch.column(0).to_pylist()
            keys = [text_key(prompt, job.config, job.fingerprint) for prompt in prompts]
            yield pa.RecordBatch.from_arrays(
                [pa.array(keys), batch.column(0)], schema=PROMPT_SCHEMA
            )

    wanted = path.with_name(f"prompts-{path.name}")
    write_batches(keyed(), PROMPT_SCHEMA, wanted)
    with db.named(present=read_index_of_texts(job.cache_root)):
        db.write(f"FROM {db.files([wanted])} ANTI JOIN present USING (key)", path)


def publish_selection(
    selection: Selection, wanted: WantedRows, cache_root: AnyPath
) -> CurationResult:
    """Publish a version of the cache with the rows that a config's accepted clips need.

    Raises:
        NothingAcceptedError: if no clip is accepted.
    """
    config = selection.config
    if not selection.counts["accepted"]:
        found = selection.judged.database.rows(
            "SELECT count(*) AS n, min(reason) FROM "
            f"(SELECT unnest(reasons) AS reason FROM {selection.judged.sql}) "
            "GROUP BY split_part(reason, ':', 1) ORDER BY n DESC, min(reason) LIMIT 3"
        )
        reasons = "; ".join(f"{count:,} clips as {example!r}" for count, example in found)
        raise NothingAcceptedError(f"no clip was accepted, for these reasons mostly: {reasons}")
    entries = wanted.entries(cache_root)
    null_key, prompts = NULL_TEXT, config.prompts
    if prompts is not None and prompts.image_token_stride is None:  # else each row has its own
        null_key = text_key(NULL_PROMPT, prompts, prompts_fingerprint(prompts))
    path = publish(cache_root, entries.to_pylist(), config.null_text, null_key)
    known = {f.name: getattr(selection, f.name) for f in fields(Selection)}
    result = CurationResult(**known, cache_path=path, num_rows=len(entries))
    logger.info("%s: latent cache %s", result.counts, result.version)
    return result
