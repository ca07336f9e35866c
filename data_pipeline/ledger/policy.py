"""Decide from stored scores which clips are kept, and say why not."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import duckdb
import pyarrow as pa

from magicdistill.data_pipeline.config import Bucket, Limit, Policy, nearest_bucket
from magicdistill.data_pipeline.latents.windows import num_resampled
from magicdistill.data_pipeline.ledger.duplicates import CLIPS, COMPARED, find_copies
from magicdistill.data_pipeline.rows import ClipRow, digest
from magicdistill.data_pipeline.scorers.base import ABSENT
from magicdistill.data_pipeline.stages.run_scorers import lacking


@dataclass(frozen=True)
class Decision:
    """Whether one clip is accepted, and why not."""

    clip: ClipRow
    status: Literal["accepted", "rejected", "failed"]
    reasons: tuple[str, ...]
    """Reasons against the clip, each beginning with the name of a check and a colon."""


def decide(
    clips: Sequence[ClipRow],
    policy: Policy,
    *buckets: Bucket,
    versions: Mapping[str, str] | None = None,
    held_out: Sequence[ClipRow] = (),
    taken_down: pa.Table | None = None,
) -> list[Decision]:
    """Return one decision per clip, in order; a failed clip keeps its recorded reason.

    First each clip is compared with the limits. Of the clips within them, those are rejected that
    not all scorers have seen, then copies, and then those beyond the number that one source may
    give. A score that is absent because its scorer has no weights rejects nothing; `count_absent`
    counts such clips.

    Args:
        clips: the clips to decide on.
        policy: the limits.
        buckets: the shapes; each clip has to fill the one of the nearest aspect.
        versions: versions of the scorers that must have seen a clip, by kind.
        held_out: clips of which no copy may be accepted.
        taken_down: clips of films that were taken down, as `Takedowns.clips` returns them, of
            which no copy may be accepted either.
    """
    versions = versions or {}
    decisions = [_decide(clip, policy, buckets) for clip in clips]
    decisions = [_seen(decision, versions) for decision in decisions]
    comparable = [_comparable(clip, versions) for clip in held_out]
    decisions = _without_copies(decisions, policy, comparable, taken_down)
    return _with_a_cap(decisions, policy)


def is_hopeless(clip: ClipRow, policy: Policy, *buckets: Bucket) -> bool:
    """Tell whether a clip's present scores already reject it, so that no costly scorer need run."""
    return _decide(clip, policy, buckets).status != "accepted"


def count_absent(clips: Sequence[ClipRow]) -> Counter[str]:
    """Return how many clips lack a score because its scorer is absent, by the reason for that."""
    return Counter(
        version
        for clip in clips
        if not clip.failure
        for version in clip.scorers.values()
        if version.startswith(ABSENT)
    )


def count_incomparable(held_out: Sequence[ClipRow], versions: Mapping[str, str]) -> Counter[str]:
    """Return how many held-out clips lack a hash or embedding of these versions, by scorer."""
    compared = {kind: version for kind, version in versions.items() if kind in COMPARED}
    return Counter(kind for clip in held_out for kind in lacking(clip, compared))


def _decide(clip: ClipRow, policy: Policy, buckets: Sequence[Bucket]) -> Decision:
    if clip.failure:
        return Decision(clip, "failed", (clip.failure,))
    clip, limits = framed(clip, policy), policy.limits_of(clip.video.mixture)
    if policy.crop_bars:
        limits.pop("letterbox.share", None)
    bucket = nearest_bucket(clip.width, clip.height, buckets)
    reasons = (*_structural(clip, policy, bucket), *_measured(clip, limits))
    return Decision(clip, "rejected" if reasons else "accepted", reasons)


def _structural(clip: ClipRow, policy: Policy, bucket: Bucket) -> Iterator[str]:
    short, long = sorted((clip.width, clip.height))
    upscale = max(bucket.height / clip.height, bucket.width / clip.width)
    if upscale > policy.max_upscale:
        yield f"resolution: {clip.height}x{clip.width} is smaller than the bucket {bucket}"
    if short < policy.min_short_side:
        yield f"resolution: short side {short} < {policy.min_short_side}"
    if long < policy.min_long_side:
        yield f"resolution: long side {long} < {policy.min_long_side}"
    ratio = clip.num_frames_decoded / clip.num_frames_header
    if ratio < policy.min_decoded_ratio:
        yield (
            f"damaged: {clip.num_frames_decoded} of {clip.num_frames_header} frames can be decoded"
        )
    min_frames = max(policy.min_frames or 0, bucket.num_frames)
    num_frames = num_resampled(clip, bucket)
    if num_frames < min_frames:
        yield f"frames: {num_frames} at {bucket.fps:g} fps < {min_frames}"
    if clip.num_cuts > policy.max_cuts:
        yield f"shot cut: {clip.num_cuts} > {policy.max_cuts}"


def _measured(clip: ClipRow, limits: dict[str, Limit]) -> Iterator[str]:
    """Yield a reason for every score beyond its limit."""
    motion = limits.pop("motion.px")
    if clip.motion_px is None:
        if motion != Limit():  # a picture has none
            yield "motion: too short to be measured"
    elif breach(clip.motion_px, motion):
        yield f"motion: {clip.motion_px:.2f} px outside {_range(motion)}"
    scores = clip.video.imported_scores | clip.scores
    for name, limit in limits.items():
        if name not in scores or limit == Limit():
            continue
        value = scores[name]
        if value is not None:
            if fault := breach(value, limit):
                yield f"{name}: {fault}"
        elif not clip.scorers[name.partition(".")[0]].startswith(ABSENT):
            yield f"{name}: could not be measured"


def framed(clip: ClipRow, policy: Policy) -> ClipRow:
    """Return a clip as it is encoded: its black bars are cropped if the policy says so."""
    limit = policy.limits_of(clip.video.mixture).get("letterbox.share", Limit())
    share = clip.scores.get("letterbox.share") or 0.0
    return _without_bars(clip) if policy.crop_bars and breach(share, limit) else clip


def breach(value: float, limit: Limit) -> str:
    """Return how a value breaks a limit, such as `0.75 > 0.5`; empty if it does not."""
    if limit.min is not None and value < limit.min:
        return f"{value:.3g} < {limit.min:g}"
    if limit.max is not None and value > limit.max:
        return f"{value:.3g} > {limit.max:g}"
    return ""


def _range(limit: Limit) -> str:
    ends = ("" if end is None else f"{end:g}" for end in (limit.min, limit.max))
    return "-".join(ends)


def _without_bars(clip: ClipRow) -> ClipRow:
    """Return the clip with a crop that excludes its black bars, whose widths are even pixels."""
    left, top, right, bottom = clip.crop or (0, 0, clip.width, clip.height)
    left += _even(clip.scores["letterbox.left"], clip.width)
    top += _even(clip.scores["letterbox.top"], clip.height)
    right -= _even(clip.scores["letterbox.right"], clip.width)
    bottom -= _even(clip.scores["letterbox.bottom"], clip.height)
    box = (left, top, max(left, right), max(top, bottom))
    return replace(clip, crop=box, width=box[2] - box[0], height=box[3] - box[1])


def _even(share: float | None, length: int) -> int:
    """Return the width of a bar in pixels, rounded up to an even number."""
    return 2 * ceil((share or 0.0) * length / 2)


def _seen(decision: Decision, versions: Mapping[str, str]) -> Decision:
    """Reject an accepted clip that some scorers skipped because of an earlier, stricter policy."""
    if decision.status == "accepted" and (kinds := lacking(decision.clip, versions)):
        return _rejected(decision, f"not scored yet: {', '.join(kinds)}")
    return decision


def _comparable(clip: ClipRow, versions: Mapping[str, str]) -> ClipRow:
    """Return the clip with only those hashes and embeddings that are of these versions."""
    blobs = {k: blob for k, blob in clip.blobs.items() if clip.scorers.get(k) == versions.get(k)}
    return replace(clip, blobs=blobs)


def _without_copies(
    decisions: Sequence[Decision],
    policy: Policy,
    held_out: Sequence[ClipRow],
    taken_down: pa.Table | None,
) -> list[Decision]:
    candidates = [decision.clip for decision in decisions if decision.status == "accepted"]
    db = duckdb.connect()
    tables = (
        _comparison(candidates),
        _comparison(held_out),
        CLIPS.empty_table() if taken_down is None else taken_down,
    )
    for name, table in zip(_VIEWS, tables, strict=True):
        db.register(name, table)
    limits = policy.max_hash_bits, policy.min_cosine
    copies = {
        copy["clip_id"]: _reason(copy)
        for copy in find_copies(db, *_VIEWS, *limits, None).to_pylist()
    }
    return [
        _rejected(decision, reason)
        if (reason := copies.get(decision.clip.clip_id)) and decision.status == "accepted"
        else decision
        for decision in decisions
    ]


_VIEWS = ("candidates", "held_out", "taken_down")


def _comparison(clips: Sequence[ClipRow]) -> pa.Table:
    """Return what `find_copies` compares of clips."""
    rows = [
        vars(clip.video) | vars(clip) | clip.blobs | {"blur": clip.scores.get("blur.effect")}
        for clip in clips
    ]
    return pa.Table.from_pylist(rows, schema=CLIPS)


def _reason(copy: Mapping[str, Any]) -> str:
    if copy["is_taken_down"]:
        return f"takedown: near copy of {copy['of_source_id']}"
    place = " in the held-out clips" if copy["is_held_out"] else ""
    return f"duplicate: of {copy['of_source_id']}{place} by {copy['how']}"


def _with_a_cap(decisions: Sequence[Decision], policy: Policy) -> list[Decision]:
    """Keep at most `max_clips_per_source` clips of each source, chosen by a hash of their ids.

    The choice is spread over the source, is always the same and depends on no other source.
    """
    by_source: dict[str, list[str]] = defaultdict(list)
    for decision in decisions:
        if decision.status == "accepted":
            by_source[decision.clip.video.source_id].append(decision.clip.clip_id)
    most = policy.max_clips_per_source
    surplus = {clip_id for ids in by_source.values() for clip_id in sorted(ids, key=digest)[most:]}
    return [
        _rejected(decision, f"cap: {decision.clip.video.source_id} has more than {most} clips")
        if decision.clip.clip_id in surplus
        else decision
        for decision in decisions
    ]


def _rejected(decision: Decision, reason: str) -> Decision:
    return replace(decision, status="rejected", reasons=(*decision.reasons, reason))
