"""What the recipes of the project are for: the `about` of each file, read without the rest."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml
from pydantic import Field

from magicdistill.data_pipeline.io.user_files import read_text
from magicdistill.models.config import Config
from magicdistill.models.paths import PathError
from magicdistill.platform.config.overrides import RecipeError, validate
from magicdistill.platform.config.recipe import COMPARISONS, LOADER, PROTOCOLS, RECIPES

TRAININGS = ("distill", "finetune", "train_vae")
"""The jobs that train what a recipe says."""
TAKES = {
    "curate": ("curate", *TRAININGS),
    "plan": TRAININGS,
    "evaluate": TRAININGS,
}
"""For whose recipes a job is, where not for its own alone."""


class About(Config):
    """The `about` of a recipe file. It decides nothing, and no run stores it."""

    job: str
    """Job that the recipe is for, such as distill for jobs/distill.py."""
    purpose: str
    """What the recipe is for, in a sentence."""
    hardware: str
    """What it needs."""
    time: str
    """How long it takes, and how that is known."""


class Comment(Config):
    """The part of a recipe file that is about the file."""

    about: About | None = Field(default=None)


@dataclass(frozen=True)
class Listed:
    """A recipe of the project and what it is for."""

    name: str
    about: About


def about(path: Path) -> About | None:
    """Return what a recipe file says of itself; None where it says nothing.

    Raises RecipeError for an `about` with unknown or missing keys.
    """
    try:
        values: Any = yaml.load(read_text(path), LOADER)
    except (PathError, yaml.YAMLError):
        return None
    if not isinstance(values, dict) or "about" not in values:
        return None
    return validate(Comment, {"about": values["about"]}, str(path)).about


def listed(job: str) -> list[Listed]:
    """Return the recipes of the project that fit a job, those that are its own first."""
    takes = TAKES.get(job, (job,))
    folder = COMPARISONS if job == "compare" else RECIPES
    found = [Listed(path.stem, it) for path in sorted(folder.glob("*.yaml")) if (it := about(path))]
    fitting = [recipe for recipe in found if recipe.about.job in takes]
    return sorted(fitting, key=lambda recipe: takes.index(recipe.about.job))


def demand_job(name_or_path: str | Path, job: str) -> None:
    """Raise RecipeError where a recipe says that it is for another job.

    A file without an `about`, as most of one's own are, fits every job.
    """
    text = str(name_or_path)
    takes = TAKES.get(job, (job,))
    if text.endswith((".yaml", ".yml")):
        paths = [Path(text)]
    else:
        paths = [folder / f"{text}.yaml" for folder in (RECIPES, COMPARISONS)]
        if (PROTOCOLS / f"{text}.yaml").is_file():
            raise RecipeError(f"{text} is a protocol, for jobs/evaluate.py --protocol {text}")
    for path in paths:
        if (found := about(path)) and found.job not in takes:
            raise RecipeError(f"{text} is for jobs/{found.job}.py")


def format_list(job: str, default: str, width: int) -> str:
    """Return the recipes that fit a job, with purpose, hardware and time."""
    blocks = [f"Recipes for jobs/{job}.py, each chosen by --recipe NAME:"]
    for recipe in listed(job):
        mark = "  (taken where --recipe is left out)" if recipe.name == default else ""
        found = recipe.about
        lines = [f"  {recipe.name}{mark}"]
        for text in (found.purpose, f"{found.hardware} · {found.time}"):
            lines.append(fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
