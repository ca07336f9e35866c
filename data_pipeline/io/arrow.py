"""Arrow's modules that take long to import, imported at their first use: no `--help` needs them."""

from importlib import import_module
from typing import Any


class _Lazy:
    """A module in the making."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


pc: Any = _Lazy("pyarrow.compute")
"""Functions over columns; type checkers know none of them."""
pq: Any = _Lazy("pyarrow.parquet")
"""Readers and writers of Parquet files."""
