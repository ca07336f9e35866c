"""Modules of one's own that register methods, sources, scorers, metrics, backbones and presets.

A recipe names them in `plugins`; an installed package announces its own by an entry point of the
group `magicdistill.plugins`. They are imported when a recipe is read, and in a job's workers.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from magicdistill.platform.config.validation import RecipeError

GROUP = "magicdistill.plugins"
VARIABLE = "MAGICDISTILL_PLUGINS"
"""Names the modules to the workers of a job, with commas between them."""
_loaded: dict[str, None] = {}


def load_plugins(modules: Iterable[str]) -> None:
    """Import the plugins of installed packages and then these modules, each once.

    Raises RecipeError, with the fix, for a module that cannot be imported.
    """
    for module, origin in _installed().items():
        _load(module, f"the entry point {origin} of the group {GROUP}", "repair or uninstall it")
    for module in modules:
        _load(module, "plugins", "put its folder on PYTHONPATH or install its package")


def load_flagged(arguments: Sequence[str]) -> None:
    """Import the modules that follow `--plugins` on a command line, before its other flags are
    read: those may choose what a module registers."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugins", nargs="*", default=())
    load_plugins(parser.parse_known_args(list(arguments))[0].plugins)


def worker_environment() -> dict[str, Any]:
    """Return what Ray's runtime environment needs for workers to import the same plugins."""
    if not _loaded:
        return {}
    return {
        "env_vars": {VARIABLE: ",".join(_loaded)},
        "worker_process_setup_hook": f"{__name__}.{load_in_worker.__name__}",
    }


def load_in_worker() -> None:
    """Import the plugins of the job that this worker belongs to."""
    load_plugins(filter(None, os.environ.get(VARIABLE, "").split(",")))


@cache
def _installed() -> dict[str, str]:
    """Return the modules that installed packages announce, with the names of their entries."""
    return {entry.module: entry.name for entry in entry_points(group=GROUP)}


def _load(module: str, origin: str, fix: str) -> None:
    if module in _loaded:
        return
    try:
        import_module(module)
    except Exception as error:  # a module of somebody else's may fail in any way
        found = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{origin}: cannot import {module!r} ({found}); {fix}") from error
    _loaded[module] = None
