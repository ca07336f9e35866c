"""The table of an evaluation: ours beside the papers' rows, as text, Markdown and JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.metrics.columns.registry import METRICS, arrow, digits, title
from magicdistill.models.metrics.results import AbsentMetric, Metric, Uncertainty
from magicdistill.platform.evaluation.paper_results import PaperTable, tables_of

OURS = "measured here"
BESIDE = ("interval", "halves", "subset_std")
"""What stands beside a metric in the JSON file."""
Cells = dict[str, str]
"""The texts of one row, by column."""


@dataclass(frozen=True)
class ScoreRow:
    """The metrics of one variant, or of one method in a paper."""

    method: str
    nfe: int
    """Number of network evaluations for one video; 0 for real clips."""
    metrics: Mapping[str, Metric]
    source: str = OURS
    """`measured here`, or `paper: <paper>, <table>`."""
    unit: str = ""
    """What `nfe` counts if not network evaluations: some papers print steps."""
    beside: Mapping[str, Uncertainty] = field(default_factory=dict)
    """Intervals and the like, by metric."""

    @property
    def is_ours(self) -> bool:
        """Whether it was measured here."""
        return self.source == OURS


@dataclass(frozen=True)
class ScoreTable:
    """The result of an evaluation."""

    protocol: str
    columns: tuple[str, ...]
    """Metrics to show; if empty, all that at least one row has."""
    rows: tuple[ScoreRow, ...]
    """The rows that were measured here."""
    facts: Mapping[str, Any]
    """What the numbers depend on: recipe, seed, inputs, models."""

    @property
    def papers(self) -> list[ScoreRow]:
        """The papers' rows of this protocol."""
        return [row for table in tables_of(self.protocol) for row in _rows_of(table)]

    @property
    def shown(self) -> list[str]:
        """The metrics of the table."""
        found = {k for row in self.rows for k, v in row.metrics.items() if isinstance(v, float)}
        return list(self.columns) or [name for name in METRICS.names() if name in found]

    def cells(self) -> list[Cells]:
        """Return the papers' rows and then ours, with the same columns."""
        return [self._cells(row) for row in (*self.papers, *self.rows)]

    def halves(self) -> list[Cells]:
        """Return the distances between disjoint halves of the inputs; those of the real clips are
        the floor. Empty where there are none."""
        found = [(row, {k: b.halves for k, b in row.beside.items()}) for row in self.rows]
        names = [name for name in self.shown if any(h.get(name) is not None for _, h in found)]
        return [
            {"at halves": "real, the floor" if not row.nfe else row.method}
            | {f"{title(name)} {arrow(name)}": _spell(name, h.get(name)) for name in names}
            for row, h in found
            if names
        ]

    def text(self) -> str:
        """Return the tables for a terminal, with the reasons of what is absent."""
        tables = [line for rows in (self.cells(), self.halves()) for line in _aligned(rows)]
        return "\n".join([*tables, *self.reasons()])

    def markdown(self) -> str:
        """Return the table and the reasons as a Markdown page."""
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        reasons = "\n".join(f"- {reason}" for reason in self.reasons())
        tables = [_piped(self.cells()), _piped(self.halves())]
        return "\n\n".join(filter(None, [f"# {self.protocol}", facts, *tables, reasons])) + "\n"

    def reasons(self) -> list[str]:
        """Return one line for each absent metric and reason, naming rows where some have it."""
        lacking: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            for name, metric in row.metrics.items():
                if isinstance(metric, AbsentMetric) and name in (self.columns or METRICS.names()):
                    lacking.setdefault((name, metric.reason), []).append(row.method)
        whole = len(self.rows)
        notes = {k: f" ({', '.join(w)})" if len(w) < whole else "" for k, w in lacking.items()}
        return [f"absent {name}{note}: {reason}" for (name, reason), note in notes.items()]

    def save(self, folder: Path) -> Path:
        """Write scores.json and scores.md; return the former."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "scores.json"
        write_text(folder / "scores.md", self.markdown())
        write_text(path, json.dumps(self._as_json(), indent=2, ensure_ascii=False))
        return path

    @classmethod
    def load(cls, path: Path) -> "ScoreTable":
        """Read what `save` wrote."""
        stored = json.loads(path.read_text())
        rows = (
            ScoreRow(
                row["method"],
                row["nfe"],
                row["metrics"] | {k: AbsentMetric(why) for k, why in row["absent"].items()},
                beside=_beside(row),
            )
            for row in stored["rows"]
        )
        return cls(stored["protocol"], tuple(stored["columns"]), tuple(rows), stored["facts"])

    def _cells(self, row: ScoreRow) -> Cells:
        steps = f"{row.nfe} {row.unit}".strip() if row.nfe else ""
        head = {"method": row.method, "NFE ↓": steps}
        values = {f"{title(m)} {arrow(m)}": _cell(m, row) for m in self.shown}
        return head | values | {"source": row.source}

    def _as_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "columns": self.columns,
            "facts": self.facts,
            "rows": [_row_as_json(row) for row in self.rows],
            "papers": [
                {"source": row.source, "method": row.method, row.unit or "nfe": row.nfe}
                | {"metrics": row.metrics}
                for row in self.papers
            ],
        }


def _rows_of(table: PaperTable) -> Iterator[ScoreRow]:
    unit, *metrics = table.columns
    for method, count, *values in table.rows:
        yield ScoreRow(
            str(method),
            int(count),
            dict(zip(metrics, map(float, values), strict=True)),
            f"paper: {table.source}",
            "" if unit == "nfe" else unit,
        )


def _row_as_json(row: ScoreRow) -> dict[str, Any]:
    metrics = row.metrics.items()
    return {
        "method": row.method,
        "nfe": row.nfe,
        "metrics": {name: value for name, value in metrics if isinstance(value, float)},
        "absent": {name: m.reason for name, m in metrics if isinstance(m, AbsentMetric)},
    } | {
        part: found
        for part in BESIDE
        if (found := {k: v for k, b in row.beside.items() if (v := getattr(b, part)) is not None})
    }


def _beside(row: Mapping[str, Any]) -> dict[str, Uncertainty]:
    """Return what `_row_as_json` wrote of what stands beside the metrics."""
    interval, halves, std = (row.get(part, {}) for part in BESIDE)
    return {
        name: Uncertainty(
            tuple(interval[name]) if name in interval else None, halves.get(name), std.get(name)
        )
        for name in interval | halves | std
    }


def _aligned(rows: Sequence[Cells]) -> list[str]:
    if not rows:
        return []
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [{name: name for name in widths}, *rows]
    text = ("  ".join(line[name].ljust(widths[name]) for name in widths) for line in lines)
    return [line.rstrip() for line in text]


def _piped(rows: Sequence[Cells]) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(name: str, row: ScoreRow) -> str:
    """Return a metric with its spread over subsets and its interval, where it has them."""
    text, beside = _spell(name, row.metrics.get(name)), row.beside.get(name)
    if beside and beside.subset_std is not None:
        text += f" ± {beside.subset_std:.{digits(name)}f}"
    if beside and beside.interval:
        text += f" [{', '.join(_spell(name, end) for end in beside.interval)}]"
    return text


def _spell(name: str, metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{metric:.{digits(name)}f}" if isinstance(metric, float) else "absent"
