"""Draw the metrics of a run as curves, one SVG each, for its page."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from magicdistill.platform.config.sections import HealthConfig, Thresholds

MAX_POINTS = 300
"""Points of a curve; longer ones are averaged over neighbouring points."""
NOTES = {
    "adversarial": "how far the discriminator sees through the generator",
    "contrast": "of the samples, over the teacher's",
    "discriminator": "loss of telling real from generated; 1.39 is a guess",
    "distance": "Fréchet distance to the real clips",
    "dmd": "distribution matching: half the squared, normalised score gap",
    "dmd_weight": "of distribution matching beside the pairs",
    "drift": "how far motion and colours of samples are from the teacher's; 0 is not at all",
    "dynamic_degree": "motion of the samples, over the teacher's",
    "dynamic_degree_proxy": "motion of the samples, over the real clips'",
    "fake_score": "flow matching of the fake score on generated clips",
    "flicker_proxy": "flicker of the samples, over the real clips'",
    "flow_matching": "squared error of the velocity",
    "gap_cosine": "direction of weak-to-strong's gap against the plain one",
    "gap_ratio": "length of weak-to-strong's gap over the plain one",
    "gap_share": "score gap over real distance, mean over samples",
    "grad_norm": "norm of the gradient before clipping",
    "ground_truth": "pull towards the real clips",
    "lr": "learning rate",
    "logit_margin": "discriminator's answer to real less that to generated clips",
    "pair_weight": "of the pairs beside distribution matching",
    "pairs": "Huber distance to the 4-step generator's video of the same noise",
    "proxy_frechet_distance": "distance to the real clips; compares runs of this world only",
    "real_distance": "how far the real score moves a sample",
    "saturation": "of the samples, over the teacher's",
    "score_gap": "how far real and fake score are apart",
    "temporal_variance": "of the samples, over the teacher's",
}
"""What a metric means, by the last part of its name."""


@dataclass(frozen=True)
class Curve:
    """One metric over training."""

    name: str
    note: str
    svg: bytes


TIMES = ("seconds", "ranks")
"""Groups of metrics that are about the machines, and not about what is learnt."""


def curves(rows: Sequence[Mapping[str, Any]], health: HealthConfig) -> dict[str, list[Curve]]:
    """Return the curves of all metrics except times, grouped by the first part of their names."""
    limits = {name: found for name, found in health if isinstance(found, Thresholds)}
    groups: dict[str, list[Curve]] = {}
    for name in sorted({name for row in rows for name in row if "/" in name}):
        group, _, last = name.partition("/")
        if group not in TIMES:
            found = [row for row in rows if name in row]
            steps, values = [row["step"] for row in found], [row[name] for row in found]
            svg = _draw(steps, values, limits.get(last, Thresholds()))
            groups.setdefault(group, []).append(Curve(name, NOTES.get(last, ""), svg))
    return groups


def time_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of the time that each part of a cycle took, the largest first."""
    spent: dict[str, float] = {}
    for row in rows:
        for name, seconds in row.items():
            if name.startswith("seconds/"):
                part = name.removeprefix("seconds/")
                spent[part] = spent.get(part, 0.0) + seconds
    whole = sum(spent.values()) or 1.0
    return {part: s / whole for part, s in sorted(spent.items(), key=lambda item: -item[1])}


def _draw(steps: Sequence[int], values: Sequence[float], limits: Thresholds) -> bytes:
    with rc_context({"svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}):
        figure = Figure(figsize=(3.1, 1.6), layout="constrained")
        axes = figure.subplots()
        marker = "." if len(steps) < 30 else ""
        axes.plot(_thinned(steps), _thinned(values), color="#3367a8", linewidth=1.2, marker=marker)
        for bound in _near(values, limits):
            axes.axhline(bound, color="#b4453a", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(nbins=4)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("cycle")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _thinned(values: Sequence[float]) -> list[float]:
    parts = np.array_split(np.asarray(values, float), min(len(values), MAX_POINTS))
    return [float(part.mean()) for part in parts]


def _near(values: Sequence[float], limits: Thresholds) -> Iterator[float]:
    """Yield the thresholds close enough to the curve to be drawn without flattening it."""
    least, most = min(values), max(values)
    for bound in (limits.min, limits.max):
        if bound is not None and max(least - bound, bound - most) <= 2 * max(most - least, 1e-12):
            yield bound
