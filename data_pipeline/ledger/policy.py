"""Decide from stored scores which clips are kept, and say why not: a policy as one SQL expression.

The expressions are about a table of `scored_clips`. Numbers in reasons are written as Python does.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from magicdistill.data_pipeline.config import LIMITS, Bucket, Limit, Policy
from magicdistill.data_pipeline.io.query import name, text
from magicdistill.data_pipeline.ledger.columns import imported_column
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.data_pipeline.scorers.base import ABSENT

Fault = tuple[str, str]
"""A condition against a clip, and the reason that it gives, both as SQL."""


@dataclass(frozen=True)
class Decision:
    """Whether one clip is accepted, and why not."""

    clip: ClipRow
    status: Literal["accepted", "rejected", "failed"]
    reasons: tuple[str, ...]
    """Reasons against the clip, each beginning with the name of a check and a colon."""


def judged(
    clips: str,
    columns: Collection[str],
    policy: Policy,
    buckets: Sequence[Bucket],
    versions: Mapping[str, str],
) -> str:
    """Return the query that judges each clip by itself: by its failure, the limits and its scorers.

    It adds `status` and `reasons`, as in `Decision`, the clip's `bucket` and `num_frames`, its
    length at the bucket's frame rate. A failed clip keeps its recorded reason. Of the clips within
    the limits, those are rejected that not all scorers have seen. A score that is absent because
    its scorer has no weights rejects nothing. Where the policy crops black bars, `crop`, `width`
    and `height` are those of the rest.

    Args:
        clips: a table or a query in parentheses, with the columns of `scored_clips`.
        columns: the names of its columns.
        policy: the limits.
        buckets: the shapes; each clip has to fill the one of the nearest aspect.
        versions: versions of the scorers that must have seen a clip, by kind.
    """
    given = ", ".join((*map(name, columns), "bucket", "num_frames"))
    faults = {mixture: _faults(mixture, columns, policy, buckets) for mixture in LIMITS}
    reasons = " ".join(
        f"WHEN mixture = {text(mixture)} THEN {_reasons(found)}"
        for mixture, found in faults.items()
    )
    status = (
        "CASE WHEN failure <> '' THEN 'failed' WHEN len(reasons) = 0 THEN 'accepted' "
        "ELSE 'rejected' END"
    )
    shaped = f"SELECT *, {_nearest(buckets)} AS shape FROM ({framed(clips, columns, policy)})"
    measured = (
        f"SELECT *, {_each(buckets, lambda b: text(b))} AS bucket, "
        f"{_num_resampled(buckets)} AS num_frames FROM ({shaped})"
    )
    against = f"SELECT *, CASE {reasons} END AS against FROM ({measured})"
    seen = (
        f"SELECT {given}, CASE WHEN failure <> '' THEN [failure] "
        f"WHEN len(against) = 0 THEN {_unseen(columns, versions)} ELSE against END AS reasons "
        f"FROM ({against})"
    )
    return f"SELECT *, {status} AS status FROM ({seen})"


def lacking(columns: Collection[str], versions: Mapping[str, str]) -> str:
    """Return the condition of clips that some present scorer has not seen in that version."""
    unseen = (condition for _, condition in _lacking(columns, versions))
    return f"({' OR '.join(unseen) or 'false'})"


def value_of(score: str, columns: Collection[str]) -> str:
    """Return a score of a clip as SQL, our own or else the imported one of that name."""
    imported = _or_null(imported_column(score), columns)
    own, scorer = f"scores.{score}", f"scorers.{score.partition('.')[0]}"
    if own not in columns:
        return imported
    if scorer not in columns:
        return f"coalesce({name(own)}, {imported})"
    return f"coalesce({name(own)}, CASE WHEN {name(scorer)} IS NULL THEN {imported} END)"


def _or_null(column: str, columns: Collection[str]) -> str:
    return name(column) if column in columns else "NULL::DOUBLE"


def beyond(value: str, limit: Limit) -> str:
    """Return the condition of values beyond a limit, as SQL; NaN is beyond none."""
    ends = []
    if limit.min is not None:
        ends.append(f"{value} < {_number(limit.min)}")
    if limit.max is not None:
        ends.append(f"({value} > {_number(limit.max)} AND NOT isnan(({value})::DOUBLE))")
    return f"({' OR '.join(ends) or 'false'})"


def frames_score(bucket: Bucket, buckets: Sequence[Bucket]) -> str:
    """Return the name of the score that counts frames at a bucket's rate; buckets that ask for
    another number of frames than the first have a name of their own."""
    same = bucket.num_frames == buckets[0].num_frames
    return "frames" if same else f"frames for {bucket.num_frames}"


def _reasons(faults: Sequence[Fault]) -> str:
    """Return the reasons of all conditions that hold as a list; texts are made only for those."""
    conditions = " OR ".join(condition for condition, _ in faults)
    texts = ", ".join(f"CASE WHEN {condition} THEN {reason} END" for condition, reason in faults)
    return (
        f"CASE WHEN failure = '' AND ({conditions}) "
        f"THEN string_split(concat_ws(chr(31), {texts}), chr(31)) ELSE []::VARCHAR[] END"
    )


def _faults(
    mixture: str, columns: Collection[str], policy: Policy, buckets: Sequence[Bucket]
) -> list[Fault]:
    limits = policy.limits_of(mixture)
    if policy.crop_bars:
        limits.pop("letterbox.share", None)
    return [*_structural(policy, buckets), *_measured(columns, limits)]


def _structural(policy: Policy, buckets: Sequence[Bucket]) -> Iterator[Fault]:
    bucket_height, bucket_width = (
        _each(buckets, lambda b, side=side: str(getattr(b, side))) for side in ("height", "width")
    )
    upscale = f"greatest({bucket_height} / height, {bucket_width} / width)"
    yield (
        f"{upscale} > {_number(policy.max_upscale)}",
        "concat('resolution: ', height, 'x', width, ' is smaller than the bucket ', bucket)",
    )
    for side, pick, least in (
        ("short", "least", policy.min_short_side),
        ("long", "greatest", policy.min_long_side),
    ):
        length = f"{pick}(width, height)"
        reason = f"concat('resolution: {side} side ', {length}, ' < {least}')"
        yield f"{length} < {least}", reason
    yield (
        f"num_frames_decoded / num_frames_header < {_number(policy.min_decoded_ratio)}",
        "concat('damaged: ', num_frames_decoded, ' of ', num_frames_header, "
        "' frames can be decoded')",
    )
    least_frames = _each(buckets, lambda b: str(max(policy.min_frames or 0, b.num_frames)))
    fps = _each(buckets, lambda b: text(f"{b.fps:g}"))
    yield (
        f"num_frames < {least_frames}",
        f"concat('frames: ', num_frames, ' at ', {fps}, ' fps < ', {least_frames})",
    )
    cuts = f"concat('shot cut: ', num_cuts, ' > {policy.max_cuts}')"
    yield f"num_cuts > {policy.max_cuts}", cuts


def _measured(columns: Collection[str], limits: dict[str, Limit]) -> Iterator[Fault]:
    """Yield a fault for every score that may be beyond its limit, or could not be taken."""
    motion = limits.pop("motion.px")
    if motion != Limit():  # a picture has none
        yield "motion_px IS NULL", "'motion: too short to be measured'"
    ends = "-".join("" if end is None else f"{end:g}" for end in (motion.min, motion.max))
    moved = f"concat(format('motion: {{:.2f}} px outside ', motion_px), {text(ends)})"
    yield beyond("motion_px", motion), moved
    for score, limit in limits.items():
        if limit == Limit():
            continue
        value = value_of(score, columns)
        for sign, end in (("<", limit.min), (">", limit.max)):
            if end is not None:
                side = Limit(min=end) if sign == "<" else Limit(max=end)
                number = f"format('{{:.3g}}', {value})"
                yield (
                    beyond(value, side),
                    f"concat({text(f'{score}: ')}, {number}, ' {sign} {end:g}')",
                )
        scorer = f"scorers.{score.partition('.')[0]}"
        if f"scores.{score}" in columns and scorer in columns:
            tried = (
                f"{name(scorer)} IS NOT NULL AND NOT starts_with({name(scorer)}, {text(ABSENT)})"
            )
            lost = f"({name(f'scores.{score}')} IS NULL AND {tried})"
            yield lost, text(f"{score}: could not be measured")


def framed(clips: str, columns: Collection[str], policy: Policy) -> str:
    """Return the query of the clips as they are encoded: without black bars if the policy says so.

    Bars are cut to even numbers of pixels.
    """
    if not policy.crop_bars or "scores.letterbox.share" not in columns:
        return f"SELECT * FROM {clips}"
    share = f"coalesce({name('scores.letterbox.share')}, 0.0)"
    cases = " ".join(
        f"WHEN mixture = {text(mixture)} THEN {beyond(share, limit)}"
        for mixture in LIMITS
        if (limit := policy.limits_of(mixture).get("letterbox.share"))
    )
    bar = {
        side: f"2 * ceil(coalesce({name(f'scores.letterbox.{side}')}, 0.0) * {length} / 2)::BIGINT"
        for side, length in (
            ("left", "width"),
            ("top", "height"),
            ("right", "width"),
            ("bottom", "height"),
        )
    }
    whole = "CASE WHEN len(crop) = 0 THEN [0, 0, width, height] ELSE crop END"
    inner = (
        f"[box[1] + {bar['left']}, box[2] + {bar['top']}, "
        f"greatest(box[1] + {bar['left']}, box[3] - {bar['right']}), "
        f"greatest(box[2] + {bar['top']}, box[4] - {bar['bottom']})]"
    )
    barred = (
        f"SELECT *, failure = '' AND coalesce(CASE {cases} END, false) AS barred, {whole} AS box "
        f"FROM {clips}"
    )
    boxed = (
        f"SELECT * REPLACE (CASE WHEN barred THEN {inner} ELSE crop END AS crop) FROM ({barred})"
    )
    return (
        "SELECT * EXCLUDE (barred, box) REPLACE ("
        "CASE WHEN barred THEN crop[3] - crop[1] ELSE width END AS width, "
        f"CASE WHEN barred THEN crop[4] - crop[2] ELSE height END AS height) FROM ({boxed})"
    )


def _nearest(buckets: Sequence[Bucket]) -> str:
    """Return the position of the bucket of the nearest aspect as SQL, as `nearest_bucket` does."""
    kept = [
        f"least(width * {b.height}, height * {b.width}) "
        f"/ greatest(width * {b.height}, height * {b.width}, 1)"
        for b in buckets
    ]
    found = str(len(buckets) - 1)
    for position in range(len(buckets) - 2, -1, -1):
        others = " AND ".join(f"{kept[position]} >= {other}" for other in kept[position + 1 :])
        found = f"CASE WHEN {others} THEN {position} ELSE {found} END"
    return found


def _num_resampled(buckets: Sequence[Bucket]) -> str:
    """Return the number of frames at the bucket's rate as SQL, as `num_resampled` does."""
    fps = _each(buckets, lambda b: _number(b.fps))
    count = f"trunc((stop - start - 1) * {fps} / fps + 1e-6)::BIGINT + 1"
    return f"CASE WHEN fps > 0 THEN {count} ELSE 0 END"  # a failed clip has no rate


def _each(buckets: Sequence[Bucket], value: Callable[[Bucket], str]) -> str:
    """Return a value that each bucket has as SQL, for the bucket at the position `shape`."""
    values = [value(bucket) for bucket in buckets]
    if len(set(values)) == 1:
        return values[0]
    cases = " ".join(f"WHEN {position} THEN {found}" for position, found in enumerate(values))
    return f"CASE shape {cases} END"


def _unseen(columns: Collection[str], versions: Mapping[str, str]) -> str:
    """Return the reason of clips that some scorers skipped because of an earlier policy."""
    kinds = _lacking(columns, versions)
    if not kinds:
        return "[]::VARCHAR[]"
    names = ", ".join(f"CASE WHEN {condition} THEN {text(kind)} END" for kind, condition in kinds)
    return (
        f"CASE WHEN {lacking(columns, versions)} THEN "
        f"['not scored yet: ' || concat_ws(', ', {names})] ELSE []::VARCHAR[] END"
    )


def _lacking(columns: Collection[str], versions: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (
            kind,
            f"{name(f'scorers.{kind}')} IS DISTINCT FROM {text(version)}"
            if f"scorers.{kind}" in columns
            else "true",
        )
        for kind, version in versions.items()
        if not version.startswith(ABSENT)
    ]


def _number(value: float) -> str:
    return f"{float(value)!r}::DOUBLE"
