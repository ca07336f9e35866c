"""Publish a version of the latent cache that lists the windows of accepted clips."""

import logging
from collections import Counter
from collections.abc import Sequence

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import committed_rows, publish
from magicdistill.data_pipeline.latents.text_shards import NULL_TEXT
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.data_pipeline.selection.curation_result import CurationResult, Selection
from magicdistill.data_pipeline.stages.embed import encoder_fingerprint, text_key
from magicdistill.data_pipeline.stages.encode import facts_of
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT

logger = logging.getLogger(__name__)


class NothingAcceptedError(ValueError):
    """No clip of a config is accepted; the message has the most frequent reasons."""


def wanted_keys(
    config: DataConfig, clips: Sequence[ClipRow], vae_fingerprint: str
) -> dict[str, list[str]]:
    """Return the cache keys of every clip by clip id."""
    return {
        clip.clip_id: [facts.key for facts in facts_of(clip, config, vae_fingerprint)]
        for clip in clips
    }


def _text_keys(config: DataConfig, clips: Sequence[ClipRow]) -> tuple[dict[str, str], str]:
    """Return the text key of every clip by its id, and that of the null prompt."""
    prompts = config.prompts
    if prompts is None:
        return {clip.clip_id: NULL_TEXT for clip in clips}, NULL_TEXT
    fingerprint = encoder_fingerprint(prompts.encoder)
    keys = {clip.clip_id: text_key(clip.video.caption, prompts, fingerprint) for clip in clips}
    return keys, text_key(NULL_PROMPT, prompts, fingerprint)


def publish_selection(
    selection: Selection, vae_fingerprint: str, cache_root: AnyPath
) -> CurationResult:
    """Publish a version of the cache with the windows of the clips that a config accepts.

    Raises:
        NothingAcceptedError: if no clip is accepted.
    """
    config = selection.config
    wanted = wanted_keys(config, selection.clips, vae_fingerprint)
    present = committed_rows(cache_root)
    texts, null_key = _text_keys(config, selection.clips)
    entries = [
        present[key]
        | {
            "clip_id": clip.clip_id,
            "source_id": clip.video.source_id,
            "license": clip.video.license,
            "mixture": clip.video.mixture,
            "text_key": texts[clip.clip_id],
        }
        for clip in selection.clips
        for key in wanted[clip.clip_id]
    ]
    if not entries:
        found = Counter(reason for d in selection.decisions for reason in d.reasons)
        raise NothingAcceptedError(
            f"no clip was accepted; the most frequent reasons: {found.most_common(3)}"
        )
    path = publish(cache_root, entries, config.null_text, null_key)
    result = CurationResult(**vars(selection), cache_path=path, num_rows=len(entries))
    logger.info("%s: latent cache %s", result.counts, result.version)
    return result
