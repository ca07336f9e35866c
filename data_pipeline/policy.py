"""Decide from stored scores which clips are kept, and say why not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from magicdistill.data_pipeline.clips import ClipRow
from magicdistill.data_pipeline.config import Bucket, Policy
from magicdistill.data_pipeline.windows import num_resampled


@dataclass(frozen=True)
class Decision:
    """What becomes of one clip."""

    clip: ClipRow
    status: Literal["accepted", "rejected", "failed"]
    reasons: tuple[str, ...]


def decide(clips: Sequence[ClipRow], policy: Policy, bucket: Bucket) -> list[Decision]:
    """Return one decision per clip; a failed clip keeps its recorded reason."""
    return [_decide(clip, policy, bucket) for clip in clips]


def _decide(clip: ClipRow, policy: Policy, bucket: Bucket) -> Decision:
    if clip.failure:
        return Decision(clip, "failed", (clip.failure,))
    reasons = tuple(_objections(clip, policy, bucket))
    return Decision(clip, "rejected" if reasons else "accepted", reasons)


def _objections(clip: ClipRow, policy: Policy, bucket: Bucket) -> Iterator[str]:
    short, long = sorted((clip.width, clip.height))
    if clip.height < bucket.height or clip.width < bucket.width:
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
    if clip.motion_px is None:
        yield "motion: too short to be measured"
    elif not policy.min_motion_px <= clip.motion_px <= policy.max_motion_px:
        low, high = policy.min_motion_px, policy.max_motion_px
        yield f"motion: {clip.motion_px:.2f} px outside {low:g}-{high:g}"
