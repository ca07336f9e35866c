"""Command lines and recipes of the impatient: what is refused, in which words, and what is not."""

import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.launch.cli import parse_arguments
from magicdistill.platform.planning.preflight import demand_trainable, demand_weights
from tests.unit.platform.config.attacks_on_commands import ACCEPTED_COMMANDS, REFUSED_COMMANDS
from tests.unit.platform.config.attacks_on_recipes import ACCEPTED_RECIPES, REFUSED_RECIPES

RAW = ("- a", "a: [", "\x00")
"""Texts that nothing is put before."""


def run(job: str, command: str) -> tuple[object, str]:
    """Give a command line to a job as the shell does; return its status and what it said."""
    said = StringIO()
    sys.argv = [f"jobs/{job}.py", *shlex.split(command)]
    with redirect_stdout(StringIO()), redirect_stderr(said):
        try:
            importlib.import_module(f"magicdistill.jobs.{job}").main()
        except SystemExit as ended:
            return ended.code, said.getvalue()
    return "went on", said.getvalue()


def fault(path: Path, text: str) -> str | None:
    """Return why a recipe is refused."""
    path.write_text(
        text if "extends:" in text or text in RAW else f"extends: portrait-tiny\n{text}\n"
    )
    try:
        recipe = load_recipe(path)
        demand_trainable(recipe)
        demand_weights(recipe)
    except RecipeError as error:
        return str(error)
    return None


TAKES_RECIPES = ("distill", "finetune", "train_vae", "plan", "curate", "evaluate")


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print past pytest's capture."""

    def print_count(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return print_count


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Undo afterwards what a job does to its process before it refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    environment = dict(os.environ)
    with warnings.catch_warnings():
        yield
    os.environ.clear()
    os.environ.update(environment)


def test_what_is_wrong_on_a_command_line_is_refused_in_a_sentence(apart, tell):
    wrong, count = [], 0
    for job, cases in REFUSED_COMMANDS.items():
        for command, expected in cases.items():
            dry = " --dry-run" if job in ("distill", "finetune", "train_vae") else ""
            status, said = run(job, command + dry)
            count += 1
            if status != 2 or expected not in said or "Traceback" in said:
                wrong.append((job, command, status, said))
    tell(f"{count} command lines refused")
    assert wrong == []


def test_what_is_right_on_a_command_line_is_accepted(apart, tell):
    wrong, count = [], 0
    for job, commands in ACCEPTED_COMMANDS.items():
        for command in commands:
            count += 1
            if job in TAKES_RECIPES:
                status, said = run(job, f"{command} --dry-run")
                if status != 0:
                    wrong.append((job, command, status, said))
            else:
                module = importlib.import_module(f"magicdistill.jobs.{job}")
                parse_arguments(job, module.Arguments, "", shlex.split(command))
    tell(f"{count} command lines accepted")
    assert wrong == []


def test_what_is_wrong_in_a_recipe_is_refused_in_a_sentence(tmp_path, tell):
    found = {text: fault(tmp_path / "attack.yaml", text) for text in REFUSED_RECIPES}
    tell(f"{len(found)} recipes refused")
    assert {
        text: said
        for text, said in found.items()
        if said is None or REFUSED_RECIPES[text] not in said
    } == {}


def test_what_is_right_in_a_recipe_is_accepted(tmp_path, tell):
    found = {text: fault(tmp_path / "attack.yaml", text) for text in ACCEPTED_RECIPES}
    tell(f"{len(found)} recipes accepted")
    assert {text: said for text, said in found.items() if said is not None} == {}


def test_of_a_repeated_flag_the_last_one_counts_also_for_alternatives():
    twice = load_recipe("portrait-tiny", ["--method.name", "magic", "--method.name=dmd2"])
    assert twice == load_recipe("portrait-tiny", ["--method.name", "dmd2"])
