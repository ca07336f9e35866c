"""Write one self-contained HTML page about a curation: funnel, reasons, scores and thumbnails."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from magicdistill.data_pipeline.captioning.costs import CaptionCost
from magicdistill.data_pipeline.ledger.calibration import COLUMNS, ScoreDistribution, spell
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.reports.histograms import COLOURS, histogram
from magicdistill.data_pipeline.reports.pages import data_uri, write_page
from magicdistill.data_pipeline.reports.thumbnails import choose, thumbnails
from magicdistill.data_pipeline.selection.curation_result import (
    CurationResult,
    Selection,
    StageTiming,
)

MAX_KEPT = 16
MAX_REJECTED = 24
MAX_FAILED = 100
"""Most failed clips that are listed by name; all are counted."""


@dataclass(frozen=True)
class Step:
    """A stage of the funnel from listed videos to cached clips."""

    name: str
    left: int
    """Number of videos or clips that are left after the stage."""
    lost: Mapping[str, int]
    """Number of those lost in the stage, by the first reason of each."""


@dataclass(frozen=True)
class Section:
    """The part of the page about one config."""

    title: str
    selection: Selection
    version: str
    """Version of the latent cache; empty if none was published."""
    steps: Sequence[Step]
    reasons: Mapping[str, int]
    """Number of clips by reason; a clip counts for each of its reasons."""
    distributions: Sequence[ScoreDistribution]
    histograms: Mapping[str, str]
    """Histogram of each score as a data URI."""
    kept: Sequence[tuple[Decision, str]]
    """Some accepted clips, each with its thumbnail as a data URI; likewise `rejected`."""
    rejected: Sequence[tuple[Decision, str]]
    failed: Sequence[Decision]


def write_report(
    path: Path,
    selections: Mapping[str, Selection],
    root: Path,
    facts: Mapping[str, str],
    timings: Sequence[StageTiming],
    caption_costs: Mapping[str, tuple[CaptionCost, CaptionCost] | None] = MappingProxyType({}),
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        selections: by title; published ones name the version of their latents.
        root: the folder of clips, ledger and latents, for pictures of clips.
        facts: names and values for the head of the page.
        timings: the stages that had something to do in this run.
        caption_costs: what written captions cost in this run, and in all, by title.
    """
    write_page(
        path,
        Path(__file__).with_name("report.html.jinja"),
        facts=facts,
        timings=timings,
        sections=[_section(title, selection, root) for title, selection in selections.items()],
        caption_costs=caption_costs,
        columns=COLUMNS,
        colours=COLOURS,
        spell=spell,
    )


def _section(title: str, selection: Selection, root: Path) -> Section:
    config, judged = selection.config, selection.judged
    calibration = selection.calibration
    distributions = calibration.distributions()
    by_score: dict[str, list[ScoreDistribution]] = defaultdict(list)
    for distribution in distributions:
        by_score[distribution.score].append(distribution)
    names = f"list_distinct(list_transform(reasons, lambda r: {_name('r')}))"
    every_reason = f"(SELECT unnest({names}) AS name, ordinal FROM {judged.sql})"
    kept = choose(judged, "accepted", MAX_KEPT)
    rejected = choose(judged, "rejected", MAX_REJECTED)
    pictures = thumbnails([d.clip for d in (*kept, *rejected)], root, config.decoder)
    shown = [
        (d, data_uri("image/jpeg", p)) for d, p in zip((*kept, *rejected), pictures, strict=True)
    ]
    return Section(
        title=title,
        selection=selection,
        version=selection.version if isinstance(selection, CurationResult) else "",
        steps=_funnel(selection),
        reasons=judged.count_by("name", source=every_reason),
        distributions=distributions,
        histograms={
            score: data_uri("image/svg+xml", histogram(found, calibration))
            for score, found in by_score.items()
        },
        kept=shown[: len(kept)],
        rejected=shown[len(kept) :],
        failed=[*judged.decisions("status = 'failed'", MAX_FAILED)],
    )


def _funnel(selection: Selection) -> list[Step]:
    """Return how many videos or clips are left after each stage, and why the others are lost."""
    faults: Counter[str] = Counter()
    for found in selection.faults.values():
        faults.update(found)
    usable = selection.num_videos - faults.total()
    late, first = "starts_with(reasons[1], 'encode:')", _name("reasons[1]")
    judged = selection.judged
    encoding = Counter(judged.count_by(first, f"status = 'failed' AND {late}"))
    opening = Counter(judged.count_by(first, f"status = 'failed' AND NOT {late}"))
    opening -= faults
    num_found = selection.num_clips - selection.counts["failed"] + encoding.total()
    policy = Counter(judged.count_by(first, "status = 'rejected'"))
    steps = [
        Step("rows of the sources", selection.num_videos, {}),
        Step("ingest: videos to read", usable, faults),
        Step("score: clips found in them", num_found, opening),
        Step("decide: clips that the policy keeps", num_found - policy.total(), policy),
        Step("encode: clips in the cache", selection.counts["accepted"], encoding),
    ]
    if selection.num_unscored:
        steps[1] = Step(steps[1].name, usable, faults | {"not scored yet": selection.num_unscored})
    return steps if isinstance(selection, CurationResult) else steps[:-1]


def _name(reason: str) -> str:
    """Return the name of the check that gives a reason, as SQL."""
    return f"split_part({reason}, ':', 1)"
