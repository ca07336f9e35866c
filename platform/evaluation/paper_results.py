"""The rows that the papers print, by protocol (papers.yaml)."""

from functools import cache
from pathlib import Path
from typing import Self

import yaml
from pydantic import TypeAdapter, model_validator

from magicdistill.models.config import Config
from magicdistill.models.metrics.columns.registry import METRICS

FILE = Path(__file__).with_name("papers.yaml")
STEPS = ("nfe", "steps")


class PaperTable(Config):
    """A table of a paper, as it is printed."""

    protocol: str
    source: str
    """Paper and table, such as `002, Table 1`."""
    columns: tuple[str, ...]
    """Names of the columns: network evaluations or steps first, then metrics."""
    rows: tuple[tuple[str | float, ...], ...]
    """The method of each row, followed by a number for each column."""

    @model_validator(mode="after")
    def _rows_fill_the_columns(self) -> Self:
        first, *metrics = self.columns
        if first not in STEPS or not set(metrics) <= set(METRICS.names()):
            raise ValueError(f"columns are {' or '.join(STEPS)} and metrics: {self.columns}")
        for row in self.rows:
            if len(row) != len(self.columns) + 1:
                raise ValueError(f"{row[0]}: {len(row) - 1} values for {len(self.columns)} columns")
        return self


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Return all tables, in the order of the file."""
    return TypeAdapter(tuple[PaperTable, ...]).validate_python(yaml.safe_load(FILE.read_text()))


def tables_of(protocol: str) -> list[PaperTable]:
    """Return the tables of a protocol; none for a protocol of our own."""
    return [table for table in paper_tables() if table.protocol == protocol]
