"""Alerts: they ask for metrics that are exported, in expressions whose parts fit together.

No pinned package parses PromQL, so this reads the part of the language that the rules use.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from magicdistill.platform.tracking.prometheus import LABELS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "magicdistill.yaml"
OF_RANGES = {
    "avg_over_time",
    "changes",
    "max_over_time",
    "min_over_time",
    "predict_linear",
    "stddev_over_time",
}
OF_INSTANTS = {"abs", "count", "sum"}
WORDS = {"or", "Inf"}
EXPORTED = {f"ray_{name}": {*labels} for name, labels in LABELS.items()} | {
    f"ray_{name}": set[str]() for name in METRICS_GAUGES
}
"""Labels that rules may ask for, by the name of a metric: of Ray's own, none."""
TOKENS = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?(?:e\d+)?)|(?P<name>[a-zA-Z_]\w*)(?P<labels>\{[^{}]*\})?
    |(?P<range>\[\d+[smhd](?::\d+[smhd])?\])|(?P<sign>==|!=|<=|>=|[-+*/<>(),]))""",
    re.VERBOSE,
)
MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*')


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def tokens(query: str) -> list[tuple[str, str, str]]:
    """Return kind, text and labels of all tokens; raises ValueError at what is none."""
    found: list[tuple[str, str, str]] = []
    place = 0
    while place < len(query.rstrip()):
        match = TOKENS.match(query, place)
        if match is None:
            raise ValueError(f"no token at {query[place:]!r}")
        place, kind = match.end(), match.lastgroup or ""
        kind = "name" if kind == "labels" else kind
        found.append((kind, match[kind], match["labels"] or ""))
    return found


def problems(query: str) -> Iterator[str]:
    """Yield what is wrong with a query: unknown names, and parts that do not fit together."""
    try:
        found = tokens(query)
    except ValueError as error:
        yield str(error)
        return
    depth, wants_operand = 0, True
    for number, (kind, text, labels) in enumerate(found):
        after = found[number + 1][1] if number + 1 < len(found) else ""
        if kind == "sign" and text == ")":
            depth -= 1
            if wants_operand or depth < 0:
                yield f"{text} at {number} closes nothing"
        elif kind == "range":
            if wants_operand:
                yield f"{text} is a range of nothing"
        elif kind == "sign" and text == "(":
            depth += 1
            if not wants_operand:
                yield f"( at {number} follows a value"
        elif kind == "sign" or text == "or":
            if wants_operand and text != "-":
                yield f"{text} at {number} has nothing on its left"
            wants_operand = True
        elif not wants_operand:
            yield f"{text} follows a value"
        elif text in OF_RANGES | OF_INSTANTS:
            if after != "(":
                yield f"{text} is no call"
        else:
            wants_operand = False
            if kind == "name" and text not in WORDS:
                yield from _unknown(text, labels)
    if depth or wants_operand:
        yield "the query ends too early"
    yield from _ranges(query)


def _unknown(name: str, labels: str) -> Iterator[str]:
    if name not in EXPORTED:
        yield f"nobody exports {name}"
        return
    parts = re.split(r",(?=\s*\w+\s*[=!])", labels[1:-1]) if labels else []
    for part in parts:
        match = MATCHER.fullmatch(part)
        if match is None:
            yield f"{part} is no matcher"
        elif match[1] not in EXPORTED[name]:
            yield f"{name} has no label {match[1]}"
        else:
            re.compile(match[3])


def _ranges(query: str) -> Iterator[str]:
    """Yield functions over time that get no range, and ranges that no function takes."""
    bare = re.sub(r"\{[^{}]*\}", "", query)
    calls = len(re.findall(rf"\b(?:{'|'.join(OF_RANGES)})\s*\(", bare))
    if calls != len(re.findall(r"\[", bare)):
        yield "functions over time and ranges are not as many"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_exported_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert [*problems(rule["expr"])] == []
    assert rule["labels"]["severity"] in ("page", "warning")
    assert re.fullmatch(r"\d+m", rule.get("for", "1m"))
    assert rule["annotations"].keys() == {"summary", "action"}
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    names = [text for kind, text, _ in tokens(rule["expr"]) if text in EXPORTED and kind == "name"]
    # Every sample has the instance that Prometheus has read it from.
    assert shown <= EXPORTED[names[0]] | {"instance"}


def test_the_alerts_are_those_that_operators_need() -> None:
    names = [rule["alert"] for rule in rules()]
    wanted = {"RunStalled", "LossNotANumber", "LossOutlier", "TrackingBehind", "GPULost"}
    assert wanted | {"DiskFilling", "NodeLost"} <= {*names}
    assert len(names) == len({*names})
    page = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("ray_magicdistill_cycles > 1", "nobody exports"),
        ('ray_magicdistill_metric{name="x"} > 1', "has no label name"),
        ("ray_magicdistill_cycle{run=x} > 1", "is no matcher"),
        ("changes(ray_magicdistill_cycle[20m] == 0", "ends too early"),
        ("changes(ray_magicdistill_cycle) == 0", "not as many"),
        ("changes(ray_magicdistill_cycle[20]) == 0", "no token"),
        ("ray_magicdistill_cycle ==", "ends too early"),
        ("ray_magicdistill_cycle ray_magicdistill_cycle", "follows a value"),
        ("> 3", "nothing on its left"),
        ("ray_magicdistill_cycle)", "closes nothing"),
    ],
)
def test_a_broken_expression_is_found(query: str, problem: str) -> None:
    assert any(problem in found for found in problems(query))


def test_the_dashboards_queries_ask_for_what_is_exported() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "magicdistill.json").read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    names = {name for query in queries for name in re.findall(r"\bray_magicdistill_\w+", query)}
    assert names and names <= EXPORTED.keys()
