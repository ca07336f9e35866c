"""The data half of a recipe alone: curate, calibrate, report, verify, take down."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import cache
from statistics import fmean
from typing import Literal

from magicdistill.data_pipeline.captioning.base import WriterError
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.query import text
from magicdistill.data_pipeline.io.storage import AnyPath, local_folder
from magicdistill.data_pipeline.latents.latent_statistics import ChannelStatistics
from magicdistill.data_pipeline.ledger.calibration import format_distributions
from magicdistill.data_pipeline.maintenance import removal, verification
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.progress import Bars
from magicdistill.data_pipeline.reports.curation_report import write_report
from magicdistill.data_pipeline.selection.curation_result import CurationResult, Selection
from magicdistill.data_pipeline.selection.publishing import NothingAcceptedError
from magicdistill.models.locations import find_weights
from magicdistill.platform.cluster.ray_cluster import announced_cluster
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.prepare import data_configs, data_root, lineage, tell
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import resume_hint
from magicdistill.platform.runs.run_directory import RunDirectory, resolve_root
from magicdistill.platform.tracking.tracker import Tracker

Stage = Literal["ingest", "score", "caption", "decide", "encode", "all"]
REPORT = "curation.html"
QUARANTINED = "attempts)"
"""End of the reason of a file that crashed or hung the decoder as often as the recipe allows."""


def curate(
    recipe: Recipe, stage: Stage = "all", *, show: bool = False, report: bool = False
) -> None:
    """Do what earlier runs left undone: all stages, or one of them.

    Args:
        recipe: its `data` and `evaluation.data` are curated together.
        stage: the stage to run; `all` ends with a report and an MLflow run.
        show: print quantiles of all scores beside their thresholds.
        report: also write a report after a single stage.

    Raises:
        ExplainedError: if nothing is accepted; the report is still written.
        FileNotFoundError: if a source or the VAE does not exist.
        RecipeError: if the recipe names no VAE to encode with, or nobody to write captions.
        WriterError: if no caption can be written.
    """
    with ExitStack() as stack:
        stack.enter_context(resume_hint("the same command"))

        @cache
        def start_ray() -> None:
            stack.enter_context(announced_cluster(recipe.cluster))

        configs = data_configs(recipe)
        logs.say(f"listing the sources of {' and '.join(configs)} clips")
        curator = Curator(list(configs.values()), _root(recipe), before_work=start_ray)
        try:
            found, problem = _run(curator, recipe, stage)
        except WriterError:  # what was paid for until then is told, too
            _tell_costs(curator, configs)
            raise
    selections = dict(zip(configs, found, strict=True))
    _tell(curator, selections, show=show)
    _tell_costs(curator, configs)
    if report or stage == "all":
        _report(recipe, curator, selections)
    if problem:
        raise problem


def _run(
    curator: Curator, recipe: Recipe, stage: Stage
) -> tuple[Sequence[Selection], Exception | None]:
    """Return the fate of all clips, and the reason if there should be a cache and is none."""
    vae = None
    if stage in ("encode", "all"):  # asked for first: it would be a pity after hours of scoring
        if recipe.model.vae is None:
            raise RecipeError("model.vae: null; latents need a VAE, or leave --stage encode out")
        vae = find_weights(recipe.model.vae, "model.vae")
    if stage == "caption" and not any(c.captions for c in data_configs(recipe).values()):
        raise RecipeError("data.captions: null; name a writer there, or leave --stage caption out")
    if stage in ("ingest", "score", "all"):
        curator.ingest()
    if stage in ("score", "all"):
        curator.score()
    if stage in ("caption", "all"):
        curator.caption()
    if vae is None:
        return curator.decide(), None
    try:
        return curator.encode(vae), None
    except NothingAcceptedError as error:  # its report is the one that is needed most
        return curator.decide(), logs.ExplainedError(str(error))


def _tell(curator: Curator, selections: Mapping[str, Selection], *, show: bool) -> None:
    if not curator.timings:
        logs.say("no video was opened and nothing was encoded: Ray not started")
    for title, selection in selections.items():
        tell(title, selection)
        _tell_faults(selection)
        if show:
            print(format_distributions(selection.calibration.distributions()), flush=True)


def _tell_costs(curator: Curator, configs: Mapping[str, DataConfig]) -> None:
    for (title, config), costs in zip(configs.items(), curator.caption_costs(), strict=True):
        if config.captions is not None and costs is not None:
            for span, cost in zip(("this run", "all runs"), costs, strict=True):
                logs.say(f"captions of {title} clips, {span}: {cost.describe(config.captions)}")


def _tell_faults(selection: Selection) -> None:
    for dataset, reasons in selection.faults.items():
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        logs.say(f"  rows of {dataset} that cannot be used: {counts}")
    if selection.num_unscored:
        logs.say(f"  videos that nobody has looked at yet: {selection.num_unscored}")
    quarantined = f"status = 'failed' AND ends_with(reasons[1], {text(QUARANTINED)})"
    for decision in selection.judged.decisions(quarantined):
        logs.say(f"  quarantined {decision.clip.video.source_id}: {decision.reasons[0]}")


def _report(recipe: Recipe, curator: Curator, selections: Mapping[str, Selection]) -> None:
    """Write the page into a run directory of its own and log it to MLflow."""
    name = f"{recipe.name}-curation-{datetime.now():%Y%m%d-%H%M%S}"
    run = RunDirectory.create(recipe.runs, recipe, name)
    facts = {
        "recipe": recipe.name,
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "code": (run.provenance().commit or "unknown")[:10],
        "folder": str(_root(recipe)),
    }
    path = run.path / REPORT
    costs = dict(zip(selections, curator.caption_costs(), strict=True))
    write_report(path, selections, local_folder(_root(recipe)), facts, curator.timings, costs)
    published = {t: s for t, s in selections.items() if isinstance(s, CurationResult)}
    run.store_data(lineage(published))
    with Tracker.start(recipe.tracking, run, {"job": "curate"}, purpose="data") as tracker:
        tracker.data(run.data())
        tracker.note(
            f"**Curation** of the clips of `{recipe.name}`: open {REPORT} among the files."
        )
        tracker.artifact(path)
        tracker.metrics(_metrics(curator, selections), step=0)
    logs.say(f"report {path}")


def _metrics(curator: Curator, selections: Mapping[str, Selection]) -> dict[str, float]:
    found: dict[str, float] = {}
    for title, selection in selections.items():
        faults = sum(sum(reasons.values()) for reasons in selection.faults.values())
        counts = selection.counts | {"listed": selection.num_videos, "unusable rows": faults}
        found |= {f"curation/{title}/{name}": count for name, count in counts.items()}
    for title, costs in zip(selections, curator.caption_costs(), strict=True):
        for span, cost in zip(("", "all "), costs or (), strict=False):
            found |= {f"curation/{title}/{span}caption {k}": v for k, v in vars(cost).items()}
    for done in curator.timings:
        found[f"curation/{done.stage}/{done.unit} per second"] = done.count / done.seconds
    return found


def verify(recipe: Recipe, *, repair: bool = False) -> bool:
    """Read everything that is committed, name what is damaged, and return whether all is intact.

    Then the latents themselves are described: statistics of every version's channels, and how
    close the recipe's VAE comes to the clips from a sample of them.

    `repair` takes damaged files out of use, so that the next curation makes them again.
    """
    root = _existing(_root(recipe))
    num_damaged = 0
    for damage in verification.verify(root, Bars(), _tell_channels):
        num_damaged += 1
        logs.say(f"damaged {str(damage.path).removeprefix(f'{root}/')}: {damage.reason}")
        if repair:
            verification.drop(damage)
    if not num_damaged:
        logs.say(f"verified {root}: no damage")
        _tell_reconstructions(recipe, root)
    elif repair:
        logs.say(f"took {num_damaged} damaged files out of use; curate again to replace them")
    else:
        logs.say(f"{num_damaged} damaged files; --repair takes them out of use")
    return not num_damaged


def _tell_channels(found: ChannelStatistics) -> None:
    logs.say(f"latents {found.version}: {found.num_rows} rows; channel by channel")
    for title, values in (("means", found.mean), ("standard deviations", found.std)):
        logs.say(f"  {title} {' '.join(f'{value:.2f}' for value in values.tolist())}")
    if found.dead:
        dead = ", ".join(map(str, found.dead))
        logs.say(f"  warning: channels {dead} hold the same value everywhere: look at the VAE")


def _tell_reconstructions(recipe: Recipe, root: AnyPath) -> None:
    """Decode a sample of the latents, if there is a VAE, and print how close it comes."""
    from magicdistill.data_pipeline.maintenance.reconstruction import (
        reconstruct,  # its packages take seconds
    )

    try:
        vae = find_weights(recipe.model.vae or "null", "model.vae")
    except FileNotFoundError as error:  # the files are sound, whether they can be looked at or not
        logs.say(f"no latents were decoded: {error}")
        return
    found: list[tuple[float, str]] = []
    for row in reconstruct([*data_configs(recipe).values()], vae, root):
        if row.psnr_db is None:
            logs.say(f"  not compared with its clip {row.source_id}: {row.failure}")
        else:
            found.append((row.psnr_db, row.source_id))
    if not found:
        logs.say(f"no latents of this recipe and {vae} were compared with their clips")
        return
    mean, (worst, source_id) = fmean(value for value, _ in found), min(found)
    logs.say(
        f"decoded {len(found)} latents: PSNR {mean:.1f} dB on average, {worst:.1f} dB at worst, "
        f"{source_id}"
    )


def take_down(recipe: Recipe, source_id: str) -> None:
    """Remove a film from everything that the recipe's runs share, and never list it again."""
    root = _existing(_root(recipe))
    removed = removal.take_down(root, source_id)
    logs.say(f"took down {source_id}; a tombstone in {root / 'ledger'} keeps it away")
    logs.say(
        f"  removed: {removed.num_rows_of_ledger} rows of the ledger, {removed.num_decisions} "
        f"decisions, {removed.num_latents} latents, {removed.num_files} files"
    )
    if not removed.num_rows_of_ledger:
        logs.say("  the ledger had no such film: is it spelt <data set>/<film>, as in a report?")
    for before, after in removed.versions.items():
        logs.say(f"  latents {before} are now {after or 'gone: nothing else was in them'}")
    for path in sorted(resolve_root(recipe.runs).glob(f"*/{REPORT}")):
        if source_id in path.read_text():
            logs.say(f"  delete yourself: {path} and its copy in MLflow name or show the film")


def _root(recipe: Recipe) -> AnyPath:
    return data_root(recipe, resolve_root(recipe.runs))


def _existing(root: AnyPath) -> AnyPath:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} does not exist: --data_root names it, or --runs the folder above it"
        )
    return root
