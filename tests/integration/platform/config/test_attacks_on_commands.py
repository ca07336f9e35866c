"""Command lines of the impatient: what is refused, in which words, and what is not."""

import importlib
import shlex

from magicdistill.platform.launch.cli import parse_arguments
from tests.integration.platform.config.attacks_on_commands import (
    ACCEPTED_COMMANDS,
    REFUSED_COMMANDS,
)
from tests.jobs_in_process import apart, run

__all__ = ["apart"]
TAKES_RECIPES = ("distill", "finetune", "train_vae", "plan", "curate", "evaluate")


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
