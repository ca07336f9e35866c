"""The folder of a run: recipe, provenance, metrics, progress, checkpoints, samples."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.paths import local_path
from magicdistill.platform.config.recipe import Recipe, load_stored, to_yaml
from magicdistill.platform.runs.provenance import Provenance
from magicdistill.platform.runs.row_files import (
    append_line,
    append_row,
    parse_row,
    read_lines,
    read_rows,
)

COMMITTED = "COMMITTED"
"""The commit marker: the file of a checkpoint that is written last and makes it count, with the
checksums of all others."""


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk: everything that MLflow shows can be rebuilt from it.

    Holds only its absolute path, so it travels to workers. One process writes metrics.
    """

    path: Path

    @classmethod
    def create(cls, root: str | Path, recipe: Recipe, folder: str | None = None) -> "RunDirectory":
        """Create a new run, named after its recipe and the time; `folder` names it otherwise.

        A relative `root` starts at the current folder, in a submitted job at the home folder.
        Raises PathError where nothing can be written there.
        """
        root = resolve_root(root)
        demand_output_folder(root, "--runs")
        run = cls(_new_folder(root, folder or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"))
        run.checkpoints.mkdir()
        run.samples.mkdir()
        write_text(run.provenance_path, Provenance.here().model_dump_json(indent=2))
        run.store(recipe)
        return run

    @classmethod
    def open(cls, name_or_path: str | Path, *, root: str | Path = "runs") -> "RunDirectory":
        """Return an existing run by path, or by its name in `root`; `latest` is a name.

        Raises FileNotFoundError, naming the runs that exist.
        """
        root = resolve_root(root)
        name_or_path = local_path(name_or_path)
        for path in (Path(name_or_path), root / name_or_path):
            if (path / "recipe.yaml").is_file():
                return cls(path.resolve())
        there = sorted(p.parent.name for p in root.glob("*/recipe.yaml") if p.parent.is_dir())
        names = [name for name in there if name != "latest"]
        listing = f"it has {', '.join(names)}" if names else "which has no runs"
        raise FileNotFoundError(f"no run {str(name_or_path)!r} here or in {root}: {listing}")

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def provenance_path(self) -> Path:
        """Commit, changes and package versions."""
        return self.path / "provenance.json"

    @property
    def data_path(self) -> Path:
        """What names the training clips and the held-out ones."""
        return self.path / "data.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_scores_path(self) -> Path:
        """What was measured on checkpoints beside the training, one JSON object for each."""
        before = self.path / "exams.jsonl"  # as runs of version 0.1 have it
        return before if before.exists() else self.path / "checkpoint-scores.jsonl"

    @property
    def system_metrics_path(self) -> Path:
        """The load of the machine that runs the job, one JSON object for each measurement."""
        return self.path / "system-metrics.jsonl"

    @property
    def scored_now_path(self) -> Path:
        """The cycle whose checkpoint is being measured and must stay; absent where none is."""
        return self.path / "scored-now.txt"

    @property
    def best_path(self) -> Path:
        """The cycle of the best checkpoint; absent before one is."""
        return self.path / "best.txt"

    @property
    def scores_path(self) -> Path:
        """The table of the evaluation; a run that has it is finished."""
        return self.path / "scores.json"

    @property
    def clips_path(self) -> Path:
        """The clips that the evaluation shows, by variant."""
        return self.path / "clips.safetensors"

    @property
    def progress_path(self) -> Path:
        """What the run said for people, line by line."""
        return self.path / "progress.log"

    @property
    def health_report_path(self) -> Path:
        """Why the run was stopped for its health; absent where it was not."""
        return self.path / "unhealthy.txt"

    @property
    def errors_path(self) -> Path:
        """The tracebacks of workers that failed."""
        return self.path / "errors.log"

    @property
    def stop_path(self) -> Path:
        """A file that asks a running training to save a checkpoint and end."""
        return self.path / "stop"

    @property
    def lock_path(self) -> Path:
        """The lock of the job that writes in the run; see `run_lock.py`."""
        return self.path / "lock.json"

    @property
    def set_aside(self) -> Path:
        """What `--resume RUN@CYCLE` has left behind: one folder for each time."""
        return self.path / "set-aside"

    @property
    def preflight_path(self) -> Path:
        """What was measured on every worker before the last group of them began."""
        return self.path / "preflight.txt"

    @property
    def nodes_path(self) -> Path:
        """The node of each rank of the last group of workers."""
        return self.path / "nodes.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of pictures and clips."""
        return self.path / "samples"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run can be resumed: it has a complete checkpoint of its own."""
        return any(self.checkpoints.glob(f"cycle-{'[0-9]' * 7}/{COMMITTED}"))

    def become_latest(self) -> None:
        """Let `latest` name this run."""
        _point(self.path.with_name("latest"), self.path)

    def store(self, recipe: Recipe) -> None:
        """Write the resolved recipe: at creation, and when a run resumes with other values."""
        write_text(self.recipe_path, to_yaml(recipe))

    def recipe(self) -> Recipe:
        """Load the resolved recipe."""
        return load_stored(self.recipe_path)

    def provenance(self) -> Provenance:
        """Load what the run was made with."""
        return Provenance.model_validate_json(self.provenance_path.read_text())

    def store_versions(self, workers: Mapping[str, str]) -> None:
        """Add the versions on the workers to what the run was made with."""
        found = self.provenance().model_copy(update={"workers": dict(workers)})
        write_text(self.provenance_path, found.model_dump_json(indent=2))

    def store_data(self, lineage: Mapping[str, Mapping[str, str]]) -> None:
        """Write what names the data: by purpose, versions of latents and policy, and mixture."""
        write_text(self.data_path, json.dumps(lineage, indent=2))

    def data(self) -> dict[str, dict[str, str]]:
        """Return what `store_data` wrote; empty before."""
        return json.loads(self.data_path.read_text()) if self.data_path.exists() else {}

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step; readers see whole lines only.

        With the first ones the run has trained, and becomes the latest.
        """
        if not self.metrics_path.exists():
            self.become_latest()
        append_row(self.metrics_path, step, metrics)

    def append_checkpoint_scores(self, cycle: int, scores: Mapping[str, float]) -> None:
        """Add what was measured on the checkpoint of a cycle."""
        append_row(self.checkpoint_scores_path, cycle, scores)

    def append_system_metrics(self, number: int, load: Mapping[str, float]) -> None:
        """Add a measurement of the machine's load, by its number in the run."""
        append_row(self.system_metrics_path, number, load)

    def mark_best(self, cycle: int) -> None:
        """Name the cycle of the best checkpoint, for whoever looks for it."""
        write_text(self.best_path, f"{cycle}\n")

    def best(self) -> int | None:
        """Return the cycle of the best checkpoint, if one is marked."""
        return _read_cycle(self.best_path)

    def scored_now(self) -> int | None:
        """Return the cycle whose checkpoint is being measured, if one is."""
        return _read_cycle(self.scored_now_path)

    def say(self, message: str) -> None:
        """Add a progress line, from any worker; `logs.follow` shows it on the driver.

        One that finds no room on the disk is left out: no run ends for a line to its reader.
        """
        with suppress(OSError):
            append_line(self.progress_path, message)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the order of writing, each with its `step`; no line that is no row."""
        yield from read_rows(self.metrics_path)

    def checkpoint_scores(self) -> Iterator[dict[str, Any]]:
        """Yield what was measured on checkpoints, as `metrics` does."""
        yield from read_rows(self.checkpoint_scores_path)

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics`, each with what was measured on its checkpoint."""
        checkpoint_scores = {row["step"]: row for row in self.checkpoint_scores()}
        return [row | checkpoint_scores.get(row["step"], {}) for row in self.metrics()]

    def rewind_metrics(self, step: int) -> None:
        """Drop what is known of cycles after `step`: a run that resumes there does them again.

        A line that is no row goes too, and a progress line says so.
        """
        for path in (self.metrics_path, self.checkpoint_scores_path):
            # Lines stay as they are: readers that remember a place in the file find it again.
            parsed = [(line, parse_row(line)) for line in read_lines(path)]
            kept = [line for line, row in parsed if row is not None and row["step"] <= step]
            if len(kept) < len(parsed):
                write_text(path, "".join(kept))
            if num_damaged := sum(row is None for _, row in parsed):
                self.say(f"{path.name} had {num_damaged} damaged line(s): dropped")
        if (self.best() or 0) > step:
            self.best_path.unlink()


def is_submitted() -> bool:
    """Tell whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def resolve_root(root: str | Path) -> Path:
    """Return the absolute folder of the runs; see `Recipe.runs`."""
    return (Path.home() if is_submitted() else Path.cwd()) / local_path(root)


def _read_cycle(path: Path) -> int | None:
    # another process may remove it just now, and a power cut may have emptied it
    with suppress(FileNotFoundError, ValueError):
        return int(path.read_text())


def _new_folder(root: Path, name: str) -> Path:
    paths = chain([root / name], (root / f"{name}-{number}" for number in count(2)))
    path = next(path for path in paths if not path.exists())
    path.mkdir()
    return path


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)
