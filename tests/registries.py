"""Registries as they were: what a test registers is gone after it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from magicdistill.data_pipeline.scorers.registry import SCORERS
from magicdistill.data_pipeline.sources.registry import SOURCES
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.networks.autoencoder.registry import VAES
from magicdistill.models.networks.backbones.registry import BACKBONES
from magicdistill.models.networks.presets import PRESETS
from magicdistill.platform.config import plugins

REGISTRIES = (METHODS, SOURCES, SCORERS, METRICS, BACKBONES, VAES)


@contextmanager
def registries_restored() -> Iterator[None]:
    """Take back, afterwards, what is registered and which plugins are loaded in the body."""
    tables: list[Any] = [r._classes for r in REGISTRIES]
    tables += [PRESETS, plugins._loaded]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for module in plugins._loaded.keys() - before[-1].keys():
            sys.modules.pop(module, None)
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
